"""GGUF files give the vectors of the same weights as safetensors, or a clear error."""

import json
import os
import struct
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest

import embedlm
from embedlm.errors import ModelError, UnsupportedError
from tests.backbone.gguf_files import CHAT, write_gguf
from tests.models import CORPUS, build

TEXTS = [*CORPUS[:5], "Two  spaces, 12345 and 5 members' plans."]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
WIDE = {"intermediate_size": 64}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def both(name: str, tmp_path: Path, kind: str = "F32", settings=None, **changes):
    folder = build(name, tmp_path / "folder", **WIDE, **changes)
    path = write_gguf(folder, tmp_path / "model.gguf", kind, **(settings or {}))
    return folder, path


def vectors(source, recipe="plain-mean", **options):
    model = embedlm.load(source, recipe, dtype="float32", **options)
    return model.encode(TEXTS)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_every_type_of_values_is_expanded_as_the_gguf_package_does(tmp_path, kind):
    folder, path = both("llama", tmp_path, kind)
    np.testing.assert_allclose(vectors(path), vectors(folder), atol=1e-6)


def test_another_file_in_the_place_and_of_the_time_of_one_is_another_model(tmp_path):
    _, path = both("llama", tmp_path)
    times = path.stat().st_mtime_ns, path.stat().st_size
    first = embedlm.load(path, "plain-mean")
    path.write_bytes(path.read_bytes().replace(CHAT.encode(), CHAT.swapcase().encode()))
    os.utime(path, ns=(times[0], times[0]))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == times
    second = embedlm.load(path, "plain-mean")
    found = [model.tokenizer.chat_template for model in (first, second)]
    assert found == [CHAT, CHAT.swapcase()]


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("recipe", ["plain-mean", "prompteol", "promptreps"])
def test_architectures_and_heads_equal_the_safetensors(tmp_path, name, recipe):
    # llama.cpp scales by the width of a head in every size but 27B.
    scalar = {"query_pre_attn_scalar": 8} if name in ("gemma2", "gemma3") else {}
    folder, path = both(name, tmp_path, "Q8_0", **scalar)
    recipe = "plain-mean" if name != "llama" and recipe == "prompteol" else recipe
    ours, theirs = (vectors(source, recipe) for source in (path, folder))
    if recipe == "promptreps":
        sparse = [vectors["sparse"].toarray() for vectors in (ours, theirs)]
        np.testing.assert_allclose(*sparse, atol=1e-5)
        ours, theirs = ours["dense"], theirs["dense"]
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 4096}),
        ("llama", {"attention_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral-sliding", {}),
    ],
)
def test_settings_of_the_network_are_read(tmp_path, name, changes):
    folder, path = both(name, tmp_path, **changes)
    np.testing.assert_allclose(vectors(path), vectors(folder), atol=1e-6)


def test_scaled_positions_are_read(tmp_path):
    settings = {
        "llama.rope.scaling.type": ("linear", 8),
        "llama.rope.scaling.factor": (4.0, 6),
    }
    kinds = {8: gguf.GGUFValueType.STRING, 6: gguf.GGUFValueType.FLOAT32}
    written = {key: (value, kinds[kind]) for key, (value, kind) in settings.items()}
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    folder, path = both("llama", tmp_path, settings=written, rope_parameters=rope)
    np.testing.assert_allclose(vectors(path), vectors(folder), atol=1e-6)
    plain = embedlm.load(path, "plain-mean").backbone.network.config.rope_parameters
    assert plain["rope_type"] == "linear"


def test_a_folder_with_one_file_and_a_second_opening_are_the_same(tmp_path, cache):
    _, path = both("qwen3", tmp_path, "F16")
    alone = tmp_path / "alone"
    alone.mkdir()
    path.rename(alone / "some.gguf")
    first = vectors(alone)
    made = sorted(cache.rglob("tokenizer.json"))
    times = [file.stat().st_mtime_ns for file in made]
    np.testing.assert_array_equal(vectors(alone / "some.gguf"), first)
    assert [file.stat().st_mtime_ns for file in sorted(cache.rglob("tokenizer.json"))] == times


def test_what_is_saved_is_a_plain_folder(tmp_path):
    _, path = both("llama", tmp_path, "Q8_0")
    model = embedlm.load(path, "prompteol", dtype="float32")
    model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.gguf"))
    again = embedlm.load(tmp_path / "saved", dtype="float32")
    np.testing.assert_allclose(again.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    assert again.tokenizer.chat_template == model.tokenizer.chat_template


def test_the_pooling_of_an_embedding_model_is_its_own(tmp_path):
    settings = {"qwen3.pooling_type": (3, gguf.GGUFValueType.UINT32)}
    folder, path = both("qwen3", tmp_path, settings=settings)
    ours = embedlm.load(path, dtype="float32")
    assert ours.recipe.pooling.kind == "last"
    expected = embedlm.load(
        folder, {"name": "last", "pooling": {"kind": "last"}, "normalize": True}
    )
    np.testing.assert_allclose(ours.encode(TEXTS), expected.encode(TEXTS), atol=1e-6)


def test_ollamas_models_are_read_by_name(tmp_path, monkeypatch):
    folder, path = both("llama", tmp_path, "Q8_0")
    models = tmp_path / "ollama"
    digest = "ab" * 32
    manifest = models / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    (models / "blobs").mkdir()
    path.rename(models / "blobs" / f"sha256-{digest}")
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    monkeypatch.setenv("OLLAMA_MODELS", str(models))
    np.testing.assert_allclose(vectors("ollama:tiny"), vectors(folder), atol=1e-6)
    with pytest.raises(ModelError, match="ollama list"):
        embedlm.load("ollama:missing", "plain-mean")
    with pytest.raises(ModelError, match="no name of an Ollama model"):
        embedlm.load("ollama:../../x", "plain-mean")
    damaged = [{**layer, "digest": "sha256:../../etc"}, {**layer, "digest": 3}, {"mediaType": 3}, 3]
    contents = [json.dumps({"layers": [one]}) for one in damaged]
    for content in (*contents, "", "[]", '{"layers": null}', "[" * 100_000, '{"layers": NaN}'):
        manifest.write_text(content)
        with pytest.raises(ModelError, match=r"cannot be read.*ollama pull tiny"):
            embedlm.load("ollama:tiny", "plain-mean")
    manifest.write_text(json.dumps({"layers": [layer, layer]}))
    with pytest.raises(ModelError, match="is in 2 parts"):
        embedlm.load("ollama:tiny", "plain-mean")


def test_a_truncated_file_says_so_wherever_it_ends(tmp_path):
    _, path = both("llama", tmp_path)
    content = path.read_bytes()
    for end in (2, 10, 30, 300, len(content) // 2, len(content) - 40):
        cut = tmp_path / f"cut-{end}.gguf"
        cut.write_bytes(content[:end])
        with pytest.raises(ModelError, match=r"truncated|no GGUF|cannot be read"):
            embedlm.load(cut, "plain-mean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"general.type": "mmproj"}, "vision projector"),
        ({"split.count": 3}, "llama-gguf-split --merge"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.pooling_type": 4}, "re-ranker"),
        ({"tokenizer.ggml.pre": "no-such"}, "splits text by 'no-such'"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer of the kind 'bert'"),
        ({"llama.attention.head_count": 0}, "head_count"),
        ({"llama.attention.value_length": 4}, "value_length"),
        ({"general.architecture": "mamba"}, "is a mamba network"),
        ({"general.architecture": "clip"}, "vision projector"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, settings, message):
    _, path = both("llama", tmp_path)
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(_with(path.read_bytes(), settings))
    with pytest.raises(ModelError, match=message):
        embedlm.load(changed, "plain-mean")


def _with(content: bytes, settings) -> bytes:
    """Return a file's bytes with other settings; the tensors keep their places."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as handle:
        handle.write(content)
        handle.flush()
        reader = gguf.GGUFReader(handle.name)
        fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        target = Path(handle.name + ".new")
        architecture = settings.get("general.architecture", "llama")
        writer = gguf.GGUFWriter(target, architecture)
        for key, field in fields.items():
            if key == "general.architecture" or key in settings:
                continue
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
        for key, value in settings.items():
            if key == "general.architecture":
                continue
            kind = (
                gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
            )
            writer.add_key_value(key, value, kind)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    written = target.read_bytes()
    target.unlink()
    return written


def test_links_and_the_case_of_names_in_a_folder(tmp_path):
    _, path = both("llama", tmp_path)
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "lost.gguf").symlink_to("nowhere")
    with pytest.raises(ModelError, match="is no model"):
        embedlm.load(folder, "plain-mean")
    (folder / "MODEL.GGUF").symlink_to(path)
    np.testing.assert_array_equal(vectors(folder), vectors(path))


def test_what_is_lost_of_the_made_folder_is_made_again(tmp_path, cache):
    _, path = both("llama", tmp_path)
    before = vectors(path)
    for name in ("tokenizer.json", "config.json", "model.gguf"):
        (made,) = cache.rglob(name)
        made.unlink()
        np.testing.assert_array_equal(vectors(path), before)


def test_a_missing_file_and_several_files_say_what_to_give(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        embedlm.load("./missing.gguf", "plain-mean")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(ModelError, match="several GGUF files"):
        embedlm.load(tmp_path, "plain-mean")
    with pytest.raises(UnsupportedError, match="nameless network"):
        embedlm.load(tmp_path / "a.gguf", "plain-mean")


def test_tensors_without_a_place_stop_the_load(tmp_path):
    folder = build("llama", tmp_path / "folder", **WIDE)
    original = gguf.GGUFWriter.write_header_to_file

    def with_one_more(self):
        self.add_tensor("blk.0.attn_extra.weight", np.zeros((32, 32), np.float32))
        return original(self)

    gguf.GGUFWriter.write_header_to_file = with_one_more
    try:
        path = write_gguf(folder, tmp_path / "model.gguf")
    finally:
        gguf.GGUFWriter.write_header_to_file = original
    with pytest.raises(ModelError, match="attn_extra"):
        embedlm.load(path, "plain-mean")


def test_the_command_line_takes_a_file(tmp_path, capsys):
    from embedlm.cli import main

    folder, path = both("llama", tmp_path)
    out = tmp_path / "v.npy"
    text = tmp_path / "t.txt"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["encode", str(text), "-o", str(out), "-m", str(path), "--recipe", "plain-mean"])
    assert ended.value.code in (0, None)
    np.testing.assert_allclose(np.load(out), vectors(folder), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("llama-bpe", ["I", "'LL", " see", " ", "123", "45", " times", "\n\n", "new"]),
        ("qwen2", ["I", "'LL", " see", " ", "1", "2", "3", "4", "5", " times", "\n\n", "new"]),
        (
            "smollm",
            ["I", "'", "LL", " see", " ", "1", "2", "3", "4", "5", " times", "\n", "\n", "new"],
        ),
        ("gpt-2", ["I", "'", "LL", " see", " 12345", " times", "\n", "\n", "new"]),
        ("tekken", ["I", "'LL", " see", " ", "1", "2", "3", "4", "5", " times", "\n\n", "new"]),
        ("gpt-4o", ["I'LL", " see", " ", "123", "45", " times", "\n\n", "new"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path, name, pieces):
    """The pieces are those of llama.cpp's expressions of these names, worked out by hand."""
    written = {"tokenizer.ggml.pre": name}
    _, path = both("llama", tmp_path)
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(_with(path.read_bytes(), written))
    tokenizer = embedlm.load(changed, "plain-mean").tokenizer.backend_tokenizer
    parts = tokenizer.pre_tokenizer.pre_tokenize_str("I'LL see 12345 times\n\nnew")
    assert [part.replace("Ġ", " ").replace("Ċ", "\n") for part, _ in parts] == pieces
