"""Tables of embeddings: folders of sentence-transformers' StaticEmbedding and of model2vec."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, models

import embedlm
from embedlm.backbone.table import own_dtype
from embedlm.errors import EmbedLMError, ModelError, UnsupportedError
from tests.models import build_tokenizer
from tests.persistence.peers import alike_and_again, change, close

TEXTS = ["plants MAKE food", "", " ", "the Quick </s> brown <s> fox", "a committee met " * 30]
LISTING = [
    {"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"},
    {"idx": 1, "name": "1", "path": "1_N", "type": "sentence_transformers.models.Normalize"},
]


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a table with further modules and opens it again."""

    def saved(*further, **options):
        torch.manual_seed(0)
        core = build_tokenizer("encoder").backend_tokenizer
        table = models.StaticEmbedding(core, embedding_dim=16)
        peer = SentenceTransformer(modules=[table, *further], device="cpu", **options)
        peer.save(str(tmp_path / "theirs"), create_model_card=False)
        return SentenceTransformer(str(tmp_path / "theirs"), device="cpu"), tmp_path / "theirs"

    return saved


@pytest.fixture
def model2vec(saved):
    """Return a function that writes a folder as model2vec does, with these tensors."""

    def model2vec(listed=True, config=None, **tensors):
        _, folder = saved()
        table = load_file(folder / "model.safetensors")["embedding.weight"]
        save_file({"embeddings": table, **tensors}, folder / "model.safetensors")
        fields = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 16}
        (folder / "config.json").write_text(json.dumps({**fields, **(config or {})}))
        (folder / "config_sentence_transformers.json").unlink()
        (folder / "modules.json").write_text(json.dumps(LISTING))
        if not listed:
            (folder / "modules.json").unlink()
        return folder

    return model2vec


@pytest.mark.parametrize(
    "further",
    [
        (),
        (models.Normalize(),),
        (models.Dropout(0.5), models.Dense(16, 8), models.LayerNorm(8), models.Normalize()),
        (models.LayerNorm(16), models.Dense(16, 8)),
    ],
    ids=lambda further: "-".join(type(one).__name__ for one in further) or "alone",
)
@pytest.mark.parametrize("prompts", [{}, {"query": "query: ", "document": "text: "}])
def test_a_table_with_what_may_follow(saved, further, prompts):
    peer, folder = saved(*further, prompts=prompts)
    model = alike_and_again(peer, folder, TEXTS)
    close(model.as_sentence_transformer().encode(TEXTS), peer.encode(TEXTS))
    assert model.max_length is None


def test_a_table_in_a_folder_of_its_own(saved):
    """As versions before 5 wrote it."""
    peer, folder = saved(models.Normalize())
    own = folder / "0_StaticEmbedding"
    own.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.move(folder / name, own / name)
    listing = json.loads((folder / "modules.json").read_text())
    listing[0]["path"] = own.name
    (folder / "modules.json").write_text(json.dumps(listing))
    alike_and_again(peer, folder, TEXTS)


def test_a_pickle_of_weights(saved):
    peer, folder = saved()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    alike_and_again(peer, folder, TEXTS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_and_is_added_up_in_float32(saved, dtype):
    peer, folder = saved()
    table = load_file(folder / "model.safetensors")["embedding.weight"]
    save_file({"embedding.weight": table.to(dtype)}, folder / "model.safetensors")
    model = embedlm.load(folder, device="cpu")
    assert (model.backbone.dtype, model.encode("plants").dtype) == (dtype, np.float32)
    close(model.encode(TEXTS), peer.encode(TEXTS), atol=0.05)
    model.save_pretrained(folder.parent / "ours")
    stored = load_file(folder.parent / "ours" / "model.safetensors")["embeddings"]
    torch.testing.assert_close(stored, table.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("direction", ["Right", "Left"])
def test_the_tokenizers_own_truncation(saved, direction):
    _, folder = saved()
    cut = {"direction": direction, "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    change(folder, "tokenizer.json", truncation=cut)
    peer = SentenceTransformer(str(folder), device="cpu")
    model = alike_and_again(peer, folder, TEXTS)
    assert model.max_length == 5
    for damaged in ({"max_length": 0}, {"max_length": 5, "direction": "Up"}, 7):
        change(folder, "tokenizer.json", truncation=damaged)
        with pytest.raises(ModelError, match=r"tokenizer\.json: truncation is .*allowed"):
            embedlm.load(folder)


def test_the_save_dtypes(saved):
    peer, folder = saved(models.Normalize())
    model = embedlm.load(folder, device="cpu")
    for dtype in ("bfloat16", "int8"):
        model.save_pretrained(folder.parent / dtype, save_dtype=dtype)
        opened = embedlm.load(folder.parent / dtype, device="cpu")
        close(opened.encode(TEXTS), peer.encode(TEXTS), atol=0.02)
    with pytest.raises(UnsupportedError, match="int8 is for networks"):
        embedlm.load(folder, dtype="int8")


# -- model2vec ---------------------------------------------------------------------------------


def folded(count=400, rows=50):
    torch.manual_seed(1)
    return {
        "embeddings": torch.randn(rows, 16),
        "mapping": torch.randint(rows, (count,)),
        "weights": torch.rand(count, dtype=torch.float64),
    }


@pytest.mark.parametrize(
    "names", [(), ("embeddings", "mapping"), ("embeddings", "mapping", "weights")]
)
def test_rows_that_tokens_share(model2vec, names):
    every = folded()
    folder = model2vec(**{name: every[name] for name in names})
    alike_and_again(SentenceTransformer(str(folder), device="cpu"), folder, TEXTS)


def test_int8_rows(model2vec):
    rows = torch.randint(-127, 128, (400, 16), dtype=torch.int8)
    model = embedlm.load(model2vec(embeddings=rows), device="cpu")
    peer = embedlm.load(model2vec(embeddings=rows.float()), device="cpu")
    close(model.encode(TEXTS), peer.encode(TEXTS))


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"mapping": torch.full((400,), 400)}, "mapping in"),
        ({"mapping": torch.zeros(400)}, "mapping in"),
        ({"weights": torch.ones(7)}, r"weights in .* \(7,\)"),
        ({"embeddings": torch.ones(400)}, r"the shape \(400,\)"),
        ({"other": torch.ones(4)}, "hold other"),
    ],
)
def test_tables_that_are_damaged(model2vec, tensors, told):
    folder = model2vec(**tensors)
    with pytest.raises(ModelError, match=told):
        embedlm.load(folder)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="cannot be read"):
        embedlm.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(EmbedLMError, match="cannot be read"):
        embedlm.load(folder)


def test_a_table_with_fewer_rows_than_its_tokenizer_has_tokens(model2vec):
    folder = model2vec(embeddings=torch.ones(90, 16))
    with pytest.raises(ModelError, match="not of one model"):
        embedlm.load(folder).encode(TEXTS)


@pytest.mark.parametrize("normalize", [True, False, None])
def test_a_folder_without_a_listing(model2vec, normalize):
    """Read as model2vec reads it: unknown tokens are left out."""
    config = {} if normalize is None else {"normalize": normalize}
    folder = model2vec(listed=False, config=config)
    core = json.loads((folder / "tokenizer.json").read_text())
    core["model"]["unk_token"] = "<mask>"
    (folder / "tokenizer.json").write_text(json.dumps(core))
    model = embedlm.load(folder, device="cpu")
    assert (model.recipe.pooling.skip, model.max_length) == (("<mask>",), 512)
    plain, mixed, nothing = model.encode(["plants", "plants<mask>", "<mask>"])
    close(plain, mixed)
    assert (plain.any(), nothing.any()) == (True, False)
    length = np.linalg.norm(plain)
    assert (abs(length - 1) < 1e-5) == bool(normalize)
    again = folder.parent / "again"
    model.save_pretrained(again)
    close(embedlm.load(again, device="cpu").encode(TEXTS), model.encode(TEXTS))
    assert not (again / "modules.json").exists()  # sentence-transformers averages those, too


@pytest.mark.parametrize("length", [3, None])
def test_the_length_of_a_folder_without_a_listing(model2vec, length):
    folder = model2vec(listed=False, config={"max_length": length})
    assert embedlm.load(folder).max_length == length
    change(folder, "config.json", max_length="long")
    with pytest.raises(UnsupportedError, match=r"config\.json: max_length is 'long'"):
        embedlm.load(folder)


# -- recipes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "bert", "gemma3"])
def test_the_embeddings_of_a_network_become_a_table(model_folder, tmp_path, arch):
    model = embedlm.load(model_folder(arch), "static-mean", device="cpu", dtype="float32")
    model.save_pretrained(tmp_path / "ours")
    again = embedlm.load(tmp_path / "ours", device="cpu")
    peer = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    close(again.encode(TEXTS), model.encode(TEXTS))
    texts = [text for text in TEXTS if "<s>" not in text]  # read there as a control token
    close(peer.encode(texts), model.encode(texts))
    assert not model.encode("").any()
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == {"embeddings"}


def test_a_fitted_table_keeps_what_it_has_learnt(model_folder, tmp_path):
    model = embedlm.load(model_folder("llama"), "static-sif", device="cpu", dtype="float32")
    model.fit(["plants make food", "a committee met", "the fox jumps"])
    model.save_pretrained(tmp_path / "ours")
    close(embedlm.load(tmp_path / "ours", device="cpu").encode(TEXTS), model.encode(TEXTS))
    assert not (tmp_path / "ours" / "modules.json").exists()


def test_a_table_by_a_recipe_that_is_given(saved):
    _, folder = saved()
    model = embedlm.load(folder, "static-tfidf", device="cpu")
    assert model.encode(TEXTS).shape == (5, 16)
    with pytest.raises(UnsupportedError, match="holds a table of embeddings, and no network"):
        embedlm.load(folder, "prompteol")
    with pytest.raises(UnsupportedError, match="no language-model head"):
        embedlm.load(folder, lm_head=True)


def test_a_table_is_trained(saved, run, tmp_path):
    peer, folder = saved(models.Normalize())
    pairs = [("plants", "food"), ("fox", "jumps"), ("committee", "met"), ("light", "glucose")]
    lines = [json.dumps({"query": query, "positive": text}) for query, text in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    stage = {
        "name": "s",
        "train": "all",
        "data": [{"source": "pairs.jsonl"}],
        "objective": [{"kind": "info_nce"}],
        "batching": {"size": 4},
        "optimizer": {"steps": 3, "learning_rate": 0.1},
    }
    (tmp_path / "plan.yaml").write_text(json.dumps({"model": str(folder), "stages": [stage]}))
    out = tmp_path / "out"
    done = run("train", tmp_path / "plan.yaml", "-o", out, "--data", tmp_path, "--device", "cpu")
    assert done.code == 0, done.err
    tuned = embedlm.load(out / "model", device="cpu")
    close(SentenceTransformer(str(out / "model"), device="cpu").encode(TEXTS), tuned.encode(TEXTS))
    queries, texts = ([pair[side] for pair in pairs] for side in (0, 1))

    def agree(model):
        return np.trace(model.encode(queries) @ model.encode(texts).T)

    assert agree(tuned) > agree(peer) + 0.1


def test_what_a_table_is_stored_in_is_told_without_its_rows(model2vec, tmp_path):
    folder = model2vec()
    rows = load_file(folder / "model.safetensors")["embeddings"]
    weights = torch.ones(len(rows), dtype=torch.float16)
    for tensors, told in [
        ({"embeddings": rows}, None),
        ({"embeddings": rows.half()}, "float16"),
        ({"embeddings": rows.bfloat16()}, "bfloat16"),
        ({"embeddings": rows.half(), "weights": weights}, None),  # a product, in float32
        ({"embeddings": rows.half(), "mapping": torch.arange(len(rows))}, "float16"),
        ({"embeddings": rows.to(torch.float64)}, None),
    ]:
        save_file(tensors, folder / "model.safetensors")
        assert own_dtype(str(folder)) == told
    embedlm.load(folder, device="cpu").save_pretrained(tmp_path / "rows", save_dtype="int8")
    assert own_dtype(str(tmp_path / "rows")) is None
    # A table of 1 GiB, of which the disk holds the head alone.
    header = {"dtype": "F16", "shape": [1 << 20, 1 << 9], "data_offsets": [0, 1 << 30]}
    text = json.dumps({"embeddings": header}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + (1 << 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert own_dtype(str(folder)) == "float16"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
