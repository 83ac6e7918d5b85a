"""Models of a hub on loopback: revisions, and the blocks of the pages that name a model."""

import json
import shlex
import shutil
import subprocess

import numpy as np
import peft
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers import models as st
from sentence_transformers.sparse_encoder.models import (
    MLMTransformer,
    SparseStaticEmbedding,
    SpladePooling,
)

import embedlm
from tests.blocks import ROOT, code_blocks, write_sample_files
from tests.command import Server
from tests.hub_downloads import downloads
from tests.models import build

PAGES = (
    "docs/from-sentence-transformers.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/rerank.md",
    "docs/methods/bge-m3.md",
    "docs/methods/jina.md",
    "docs/methods/llm2vec.md",
    "docs/methods/promptbert.md",
    "docs/methods/splade.md",
)
HUB = "needs a model hub"


def classifier(folder):
    """Save a tiny XLM-R with one score."""
    build("xlm-r", folder, head=False)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=1)
    torch.manual_seed(0)
    network = transformers.AutoModelForSequenceClassification.from_config(config)
    network.save_pretrained(folder)
    return folder


def bge_m3(folder):
    """Save a tiny XLM-R with BGE-M3's two linear layers."""
    build("xlm-r", folder, head=False)
    for name, width in (("sparse", 1), ("colbert", 32)):
        layer = torch.nn.Linear(32, width)
        torch.save(layer.state_dict(), folder / f"{name}_linear.pt")
    return folder


def adapter(base, folder, target="q_proj"):
    """Save a random LoRA adapter."""
    network = transformers.AutoModel.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=[target], init_lora_weights=False)
    peft.get_peft_model(network, config).save_pretrained(folder)
    return folder


def folders_of_modules(bert, root):
    """Save models whose networks and tables lie in folders of their own."""
    mlm = MLMTransformer(str(bert))
    query = SparseStaticEmbedding(mlm.tokenizer, weight=torch.rand(400))
    router = st.Router.for_query_document([query], [mlm, SpladePooling()])
    SparseEncoder(modules=[router], device="cpu").save(str(root / "router"))
    table = st.StaticEmbedding(mlm.tokenizer.backend_tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[table], device="cpu").save(str(root / "table"))
    pooled = [st.Transformer(str(bert)), st.Pooling(32)]
    SentenceTransformer(modules=pooled, device="cpu").save(str(root / "inner"))
    for name, own in (("table", "0_StaticEmbedding"), ("inner", "0_Transformer")):
        (root / name / own).mkdir()
        for file in [path for path in (root / name).iterdir() if path.is_file()]:
            if file.name not in ("modules.json", "config_sentence_transformers.json"):
                shutil.move(file, root / name / own / file.name)
        listing = json.loads((root / name / "modules.json").read_text())
        listing[0]["path"] = own
        (root / name / "modules.json").write_text(json.dumps(listing))
    return {
        "opensearch-project/opensearch-neural-sparse-encoding-doc-v2-distill": root / "router",
        "sentence-transformers/static": root / "table",
        "sentence-transformers/inner": root / "inner",
    }


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    made = {
        "Qwen/Qwen3-0.6B": build("qwen3", root / "qwen3", max_position_embeddings=2048),
        "BAAI/bge-reranker-v2-m3": classifier(root / "classifier"),
        "google-bert/bert-base-uncased": build("bert", root / "bert"),
    }
    made["Qwen/Qwen3-Reranker-0.6B"] = made["Qwen/Qwen3-0.6B"]
    made["naver/splade-cocondenser-ensembledistil"] = made["google-bert/bert-base-uncased"]
    made["BAAI/bge-m3"] = bge_m3(root / "bge-m3")
    jina = made["jinaai/jina-embeddings-v3-hf"] = build("xlm-r", root / "jina", head=False)
    for role in ("retrieval_query", "retrieval_passage", "text_matching"):
        adapter(jina, jina / "adapters" / role, "query")
    mistral = build("mistral-sliding", root / "mistral")
    made["mistralai/Mistral-7B-Instruct-v0.2"] = mistral
    for name in ("mntp", "mntp-supervised"):
        repository = f"McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-{name}"
        made[repository] = adapter(mistral, root / name)
    made |= folders_of_modules(made["google-bert/bert-base-uncased"], root)
    older = shutil.copytree(made["Qwen/Qwen3-0.6B"], root / "older")
    config = json.loads((older / "config.json").read_text()) | {"rope_theta": 77.0}
    config.pop("rope_parameters", None)
    (older / "config.json").write_text(json.dumps(config))
    return {"main": made, "older": {"Qwen/Qwen3-0.6B": older}}


@pytest.fixture(scope="module")
def forks(repositories, tmp_path_factory):
    """Return a process whose hub is on loopback, which forks for all code, and that hub's cache."""
    home = tmp_path_factory.mktemp("hf")
    with downloads(repositories) as hub:
        started = Server(
            HF_ENDPOINT=hub.address,
            HF_HOME=str(home),
            HF_HUB_OFFLINE="0",
            TRANSFORMERS_OFFLINE="0",
            HF_HUB_DISABLE_XET="1",
        )
        yield started, home
        started.close()


@pytest.fixture
def run(forks, home, tmp_path):
    """Return a function that runs code in a process whose hub is on loopback."""

    def run(code):
        done = forks[0].run_code(code, folder=tmp_path)
        assert done.code == 0, done.err[-3000:]
        return done.out

    return run


@pytest.fixture
def home(forks):
    """Return the folder in which the hub's client keeps what it downloads; it is empty."""
    shutil.rmtree(forks[1])
    forks[1].mkdir()
    return forks[1]


def test_a_revision_is_what_is_loaded(run, repositories):
    code = (
        "import embedlm, json\n"
        "name = 'Qwen/Qwen3-0.6B'\n"
        "vectors = [embedlm.load(name, 'plain-mean', dtype='float32', **options).encode(['fox'])\n"
        "           for options in ({}, {'revision': 'older'}, {'revision': '2' * 40})]\n"
        "print(json.dumps([v.tolist() for v in vectors]))\n"
        "try:\n"
        "    embedlm.load(name, 'plain-mean', revision='none')\n"
        "except embedlm.errors.ModelError as error:\n"
        "    print(error)\n"
    )
    first, told = run(code).splitlines()
    main, older, commit = (np.array(v, dtype=np.float32) for v in json.loads(first))
    for vectors, branch in ((main, "main"), (older, "older"), (commit, "older")):
        folder = repositories[branch]["Qwen/Qwen3-0.6B"]
        expected = embedlm.load(folder, "plain-mean", dtype="float32").encode(["fox"])
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert np.abs(main - older).max() > 1e-3
    assert "Qwen/Qwen3-0.6B" in told


@pytest.mark.parametrize("options", [{}, {"cache_dir": "own"}])
def test_networks_and_tables_in_folders_below(run, repositories, options):
    names = [name for name in repositories["main"] if name.startswith(("sentence-", "opensearch"))]
    code = (
        "import embedlm, json\n"
        f"for name in {names}:\n"
        f"    vectors = embedlm.load(name, **{options}).encode_query(['fox'])\n"
        "    vectors = vectors.sparse.toarray() if hasattr(vectors, 'sparse') else vectors\n"
        "    print(json.dumps(vectors.tolist()))\n"
    )
    for name, line in zip(names, run(code).splitlines(), strict=True):
        own = embedlm.load(repositories["main"][name]).encode_query(["fox"])
        own = own.sparse.toarray() if hasattr(own, "sparse") else own
        np.testing.assert_allclose(np.array(json.loads(line)), own, atol=1e-6)


def test_all_that_is_downloaded_lies_in_the_folder_that_is_named(run, home, tmp_path):
    code = (
        "import embedlm\n"
        "model = embedlm.load('mistralai/Mistral-7B-Instruct-v0.2', 'plain-mean',\n"
        "    cache_dir='own', token='hf_own',\n"
        "    adapters=['McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp'])\n"
        "print([one.parents[1].name for one in model.backbone.merged])\n"
    )
    assert "models--McGill-NLP--LLM2Vec-Mistral-7B-Instruct-v2-mntp" in run(code)
    assert len(list((tmp_path / "own").glob("models--*"))) == 2
    assert not list(home.rglob("models--*"))


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_that_name_a_model_of_the_hub_run(run, page, tmp_path):
    path = ROOT / page
    write_sample_files(tmp_path, path)
    lines = ["import embedlm"]
    for block in code_blocks(path):
        for line in block.code.replace("\\\n", " ").splitlines():
            if line.startswith("printf "):  # makes a file that later blocks read
                subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
        if block.reason != HUB:
            continue
        if block.language == "python":
            lines.append(block.code)
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            words = json.dumps(shlex.split(line)[1:])
            lines.append(
                "from embedlm.cli import main\n"
                f"try:\n    main({words})\n"
                "except SystemExit as ended:\n    assert not ended.code, ended.code"
            )
    assert len(lines) > 1
    run("\n".join(lines))


def test_the_base_of_an_adapter_and_what_writes_lie_there_too(run, home, repositories, tmp_path):
    mntp = repositories["main"]["McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"]
    folder = shutil.copytree(mntp, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "mistralai/Mistral-7B-Instruct-v0.2"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    code = (
        "import embedlm\n"
        "from embedlm.interop.opening import Place, opened\n"
        "place = Place(token='hf_own', cache_folder='own')\n"
        "print(opened('adapter', place, 'cpu', {}, 'plain-mean')[0].dim)\n"
        "model = embedlm.load('adapter', 'geneol', cache_dir='own', generator='Qwen/Qwen3-0.6B')\n"
        "print(model.generator)\n"
    )
    assert "models--Qwen--Qwen3-0.6B" in run(code)
    assert len(list((tmp_path / "own").glob("models--*"))) == 2
    assert not list(home.rglob("models--*"))
