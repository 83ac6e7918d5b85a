"""Folders of sentence-transformers' CrossEncoder give the same scores here, or are refused."""

import json

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Transformer

import embedlm
from embedlm.errors import InputError, ModelError, UnsupportedError
from embedlm.rerank import is_reranker
from tests.models import build_tokenizer
from tests.rerank.test_rerank import LONG, PAIRS, classifier

IDENTITY = "torch.nn.modules.linear.Identity"
FLAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)
STRUCTURED = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content[0].text | trim }}\n"
    "{% endfor %}Answer:"
)


def edit(file, **changes):
    """Change keys of a JSON file; a value of None takes the key away."""
    content = {**(json.loads(file.read_text()) if file.is_file() else {}), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(content))


def same(folder, **options):
    """Compare with the library; return the scores."""
    theirs = CrossEncoder(str(folder), device="cpu").predict(PAIRS, **options)
    ours = embedlm.Reranker(folder, device="cpu").predict(PAIRS, **options)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert np.ptp(theirs) > 1e-4
    return ours


@pytest.fixture
def cross(model_folder, tmp_path):
    """Return a function that saves a CrossEncoder's folder as the library does."""

    def save(kind="bert", chat=None, **options):
        base = classifier(model_folder(kind), tmp_path / "base")
        if chat:
            (base / "chat_template.jinja").write_text(chat)
        CrossEncoder(str(base), device="cpu", **options).save_pretrained(str(tmp_path / "cross"))
        return tmp_path / "cross"

    return save


@pytest.fixture
def answering(model_folder, tmp_path):
    """Return a function that saves a language model with a LogitScore."""

    def save(chat=None, false=270, **options):
        base = tmp_path / "base"
        source = model_folder("llama", max_position_embeddings=1024)
        network = transformers.AutoModelForCausalLM.from_pretrained(source)
        network.save_pretrained(base)
        tokenizer = build_tokenizer("decoder", 1024)
        if chat:
            tokenizer.chat_template = chat
        tokenizer.save_pretrained(base)
        body = Transformer(
            str(base),
            transformer_task="text-generation",
            processing_kwargs=options.pop("processing", None),
        )
        modules = [body, LogitScore(true_token_id=262, false_token_id=false)]
        CrossEncoder(modules=modules, device="cpu", **options).save_pretrained(str(tmp_path / "lm"))
        return tmp_path / "lm"

    return save


# -- activations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_settings", "in_config", "before", "probability"),
    [
        (IDENTITY, None, None, False),
        (None, {"activation_fn": IDENTITY}, None, False),
        (None, None, IDENTITY, False),
        ("torch.nn.modules.activation.Sigmoid", {"activation_fn": IDENTITY}, IDENTITY, True),
        (None, {"activation_fn": "torch.nn.modules.activation.Sigmoid"}, IDENTITY, True),
        (None, None, None, True),
    ],
)
def test_the_activation_is_that_of_the_file_that_counts(
    cross, in_settings, in_config, before, probability
):
    folder = cross()
    edit(folder / "config_sentence_transformers.json", activation_fn=in_settings)
    edit(
        folder / "config.json",
        sentence_transformers=in_config,
        sbert_ce_default_activation_function=before,
    )
    same(folder)
    assert embedlm.Reranker(folder).method.probability is probability


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.Tanh", "mine.Identity"])
def test_another_activation_is_refused(cross, name):
    folder = cross()
    edit(folder / "config_sentence_transformers.json", activation_fn=name)
    with pytest.raises(UnsupportedError, match=name):
        embedlm.Reranker(folder)
    squashed = embedlm.Reranker(folder, "cross-encoder").predict(PAIRS)
    assert squashed.min() >= 0
    assert squashed.max() <= 1


# -- prompts, lengths, lower case --------------------------------------------------------------


def test_prompts_are_those_of_the_folder(cross):
    folder = cross(prompts={"a": "plants: ", "b": "light "}, default_prompt_name="a")
    default = same(folder)
    named = same(folder, prompt_name="b")
    given = same(folder, prompt="food ")
    bare = same(folder, prompt="")
    for one, other in ((default, named), (named, given), (given, bare), (default, bare)):
        assert np.abs(one - other).max() > 1e-4
    ours = embedlm.Reranker(folder)
    with pytest.raises(InputError, match="'c' is not one of the model's; allowed: 'a', 'b'"):
        ours.predict(PAIRS, prompt_name="c")
    with pytest.raises(InputError, match="both prompt and prompt_name"):
        ours.predict(PAIRS, prompt_name="a", prompt="x")
    with pytest.raises(InputError, match="no place"):
        ours.predict(PAIRS, instruction="x")
    ranked = ours.rank(*("food", ["light", "plants make food"]), prompt_name="b")
    scores = ours.score("food", ["light", "plants make food"], prompt_name="b")
    assert [one["score"] for one in ranked] == sorted(map(float, scores), reverse=True)


def test_a_default_prompt_that_is_missing_is_an_error(cross):
    folder = cross()
    edit(folder / "config_sentence_transformers.json", default_prompt_name="a")
    with pytest.raises(ModelError, match="default_prompt_name is 'a'"):
        embedlm.Reranker(folder)


@pytest.mark.parametrize("changes", [{"do_lower_case": True}, {"max_seq_length": 12}])
def test_settings_of_the_transformer_are_honoured(cross, changes):
    folder = cross()
    pairs = [("WHAT do Plants make?", "Plants MAKE food"), *PAIRS]
    plain = embedlm.Reranker(folder).predict(pairs)
    edit(folder / "sentence_bert_config.json", **changes)
    ours = embedlm.Reranker(folder, device="cpu").predict(pairs)
    assert np.abs(ours - plain).max() > 1e-4
    theirs = CrossEncoder(str(folder), device="cpu").predict(pairs)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_one_pair_alone_gives_one_score(cross):
    folder = cross()
    score = embedlm.Reranker(folder).predict(("food?", "plants make food"))
    assert np.ndim(score) == 0
    theirs = CrossEncoder(str(folder), device="cpu").predict(("food?", "plants make food"))
    np.testing.assert_allclose(score, theirs, atol=2e-5)


# -- answers of a language model ---------------------------------------------------------------


@pytest.mark.parametrize("false", [270, None])
def test_a_logit_score_reads_its_own_tokens(answering, false):
    folder = answering(false=false)
    same(folder)
    same(folder, prompt="judge: ")


@pytest.mark.parametrize("chat", [FLAT, STRUCTURED])
def test_a_chat_template_writes_the_pair(answering, chat):
    folder = answering(chat, prompts={"task": "Judge."}, default_prompt_name="task")
    judged = same(folder)
    bare = same(folder, prompt="")
    assert np.abs(judged - bare).max() > 1e-4
    padded = [(" food ", "\nlight  ")]
    theirs = CrossEncoder(str(folder), device="cpu").predict(padded)
    np.testing.assert_allclose(embedlm.Reranker(folder).predict(padded), theirs, atol=2e-5)


def test_arguments_of_the_chat_template_are_honoured(answering):
    options = {"chat_template": {"add_generation_prompt": True}}
    folder = answering(FLAT, processing=options)
    asked = same(folder)
    edit(folder / "sentence_bert_config.json", processing_kwargs=None)
    assert np.abs(asked - same(folder)).max() > 1e-4
    edit(folder / "sentence_bert_config.json", processing_kwargs={"text": {"max_length": 9}})
    with pytest.raises(UnsupportedError, match="processing_kwargs"):
        embedlm.Reranker(folder)


def test_a_long_document_is_cut_before_the_end_of_the_chat(answering):
    folder = answering(STRUCTURED)
    edit(folder / "sentence_bert_config.json", max_seq_length=64)
    pairs = [("food?", "plants make food from light " * n) for n in (1, 5, 40)]
    theirs = CrossEncoder(str(folder), device="cpu").predict(pairs)
    np.testing.assert_allclose(embedlm.Reranker(folder).predict(pairs), theirs, atol=2e-5)


def test_a_query_that_leaves_no_room_in_a_chat_is_named(answering, cross):
    for folder in (answering(STRUCTURED), cross("llama", STRUCTURED)):
        edit(folder / "sentence_bert_config.json", max_seq_length=64)
        with pytest.raises(
            InputError, match=r"the query 'plants make food .* within max_length 64"
        ):
            embedlm.Reranker(folder, device="cpu").score(LONG, ["a"])


def test_a_chat_template_writes_the_pair_of_a_classifier(cross):
    folder = cross("llama", STRUCTURED)
    same(folder)
    edit(folder / "sentence_bert_config.json", modality_config=None)
    joined = same(folder)
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    assert np.abs(same(folder) - joined).max() > 1e-4


@pytest.mark.parametrize(
    "chat",
    [
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ raise_exception('no such role') }}",
    ],
)
def test_a_chat_template_that_loses_the_pair_is_refused(answering, chat):
    with pytest.raises(UnsupportedError, match="chat template"):
        embedlm.Reranker(answering(chat)).predict(PAIRS)


# -- refused by name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("config_sentence_transformers.json", {"score_scale": 2}, "score_scale"),
        ("config_sentence_transformers.json", {"keep_in_fp32_modules": ["0.m"]}, "keep_in_fp32"),
        ("config_sentence_transformers.json", {"model_type": "SentenceTransformer"}, "embeddings"),
        ("sentence_bert_config.json", {"query_length": 3}, "query_length"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "fill-mask"),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "task"),
        ("sentence_bert_config.json", {"max_seq_length": "x"}, "max_seq_length"),
        ("config.json", {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0}}, "2 outputs"),
        ("config.json", {"architectures": ["JinaForRanking"]}, "listwise"),
        ("config.json", {"architectures": ["MyForSequenceClassification"]}, "MyForSequence"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused(cross, file, changes, told):
    folder = cross()
    edit(folder / file, **changes)
    with pytest.raises(ModelError, match=told) as refused:
        embedlm.Reranker(folder)
    assert "recipe=" not in str(refused.value)  # a re-ranker takes none


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"type": "sentence_transformers.base.modules.dense.Dense", "path": "1_Dense"}, "Dense"),
        ({"type": "mine.LogitScore", "path": "1_LogitScore"}, "mine.LogitScore"),
        ({"type": "sentence_transformers.models.LogitScore", "path": "../x"}, "x"),
        ({"type": "sentence_transformers.models.Transformer", "path": ""}, "Transformer"),
        ({"kwargs": ["task"], "type": "sentence_transformers.models.T", "path": ""}, "kwargs"),
        ({"path": ""}, "list of modules"),
    ],
)
def test_a_module_that_is_not_known_is_refused(cross, entry, told):
    folder = cross()
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, entry]))
    with pytest.raises(ModelError, match=told):
        embedlm.Reranker(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"true_token_id": None}, "no true_token_id"),
        ({"true_token_id": "yes"}, "true_token_id"),
        ({"true_token_id": 9999}, "400 tokens"),
        ({"module_input_name": "scores"}, "module_input_name"),
        ({"temperature": 2}, "temperature"),
    ],
)
def test_keys_of_a_logit_score_are_honoured_or_refused(answering, changes, told):
    folder = answering()
    edit(folder / "1_LogitScore" / "config.json", **changes)
    with pytest.raises(ModelError, match=told):
        embedlm.Reranker(folder)


# -- adapters ----------------------------------------------------------------------------------


def adapted(base, folder, loader, modules=("q_proj", "v_proj")):
    """Write an adapter for a network that changes what it gives."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=list(modules), init_lora_weights=False)
    torch.manual_seed(4)
    peft.get_peft_model(loader.from_pretrained(base), config).save_pretrained(folder)
    return folder


def test_the_folder_of_an_adapter_is_a_re_ranker(tiny_llama, tmp_path):
    adapter = adapted(tiny_llama, tmp_path / "one", transformers.AutoModelForCausalLM)
    assert not is_reranker(adapter)
    options = {"method": {"kind": "answer", "yes": 262, "no": 270, "template": "{query} {text}"}}
    ours = embedlm.Reranker(adapter, **options).predict(PAIRS)
    given = embedlm.Reranker(tiny_llama, adapters=[str(adapter)], **options).predict(PAIRS)
    np.testing.assert_allclose(ours, given, atol=1e-6)
    assert np.abs(ours - embedlm.Reranker(tiny_llama, **options).predict(PAIRS)).max() > 1e-4


def test_an_adapter_with_the_settings_of_a_cross_encoder(answering, tmp_path):
    folder = answering()
    adapted(tmp_path / "base", folder, transformers.AutoModelForCausalLM)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    same(folder)


def test_an_adapter_on_a_cross_encoder_is_refused(cross, tmp_path):
    loader = transformers.AutoModelForSequenceClassification
    adapter = adapted(cross(), tmp_path / "one", loader, ["query", "value"])
    assert is_reranker(adapter)
    with pytest.raises(InputError, match="adapters are for language models"):
        embedlm.Reranker(adapter)


def test_an_option_that_is_not_known_is_refused(cross):
    ours = embedlm.Reranker(cross())
    quiet = ours.predict(PAIRS, batch_size=3, show_progress_bar=False)
    np.testing.assert_array_equal(quiet, ours.predict(PAIRS))
    with pytest.raises(InputError, match="'apply_softmax'"):
        ours.predict(PAIRS, apply_softmax=True)


def test_a_score_that_is_no_number_is_an_error(cross):
    folder = cross()
    ours = embedlm.Reranker(folder)
    with torch.no_grad():
        next(ours._network.network.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match=r"plants make food.*nan"):
        ours.predict(PAIRS)
