"""Architectures give the states of transformers' own forward, alone and in any company."""

import logging

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from benchmarks import architectures
from embedlm.backbone import load_backbone
from embedlm.schema.recipe import Backbone

REPRESENTATIVE = (  # noqa: SIM905
    "llama bert mpnet xlm-roberta fnet convbert albert modernbert embedding_gemma2_text lfm2 "
    "clip_text_model llama4_text t5 bloom mamba afmoe"
).split()
"""One for each way of positions, padding, windows and recurrence."""
SIXTY = (  # noqa: SIM905
    "afmoe albert apertus arcee bert bert-generation big_bird biogpt bitnet bloom camembert "
    "codegen cohere cohere2 convbert ctrl data2vec-text deberta deberta-v2 distilbert electra "
    "embedding_gemma2_text ernie ernie4_5 eurobert exaone4 falcon falcon_mamba flaubert fnet gemma "
    "gemma2 gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neox gptj granite helium ibert lfm2 llama "
    "mamba mistral mixtral modernbert mpnet mpt nomic_bert nystromformer olmo2 opt phi3 qwen2 "
    "qwen3 roberta roformer rwkv squeezebert stablelm starcoder2 xlm-roberta yoso"
).split()
LENGTHS = st.lists(st.integers(1, 40), min_size=2, max_size=6)


@pytest.fixture(autouse=True)
def quiet():
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    yield
    logging.disable(before)


@pytest.mark.parametrize("name", REPRESENTATIVE)
@pytest.mark.filterwarnings("ignore")
def test_states_are_those_of_a_plain_forward(name, tmp_path):
    row = architectures.check(name, tmp_path)
    assert row.verdict == "equal", row


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_reads_no_text_is_refused(tmp_path):
    assert architectures.check("vit", tmp_path).verdict == "refused"
    assert architectures.check("clip", tmp_path).verdict == "refused"


def saved(name, folder):
    architectures.built(name).save_pretrained(folder)
    architectures.save_tokenizer(folder)
    return str(folder)


@pytest.mark.parametrize("name", SIXTY)
@pytest.mark.filterwarnings("ignore")
def test_states_are_equal_alone_and_in_company(name, tmp_path):
    """On the packed path, where there is one, and on the padded one, in float32."""
    folder = saved(name, tmp_path)
    ways = [
        load_backbone(
            folder, Backbone(attention="native"), dtype="float32", device="cpu", attn=attn
        )
        for attn in ("auto", "sdpa")
    ]
    generator = torch.Generator().manual_seed(0)
    high = ways[0].vocab_size

    @settings(max_examples=3, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(lengths=LENGTHS)
    def holds(lengths):
        rows = [torch.randint(5, high, (n,), generator=generator).tolist() for n in lengths]
        with torch.no_grad():
            alone = [ways[1].run([row]) for row in rows]
            for way in ways:
                together = way.run(rows).split(lengths)
                for found, expected in zip(together, alone, strict=True):
                    error = (found - expected).norm() / expected.norm().clamp_min(1e-9)
                    assert error < architectures.LARGEST_ERROR, (name, way.implementation)

    holds()


def test_the_page_names_every_architecture():
    table = architectures.read(architectures.PAGE)
    missing = set(MODEL_MAPPING_NAMES) - set(table)
    if transformers.__version__ not in architectures.PAGE.read_text(encoding="utf-8"):
        pytest.skip("the page is of another version of transformers")
    assert not missing
    assert not [row.name for row in table.values() if row.verdict == "DIFFERENT"]
