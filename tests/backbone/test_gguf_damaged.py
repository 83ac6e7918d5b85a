"""GGUF files whose settings, vocabulary or table of tensors contradict each other are refused."""

import struct

import pytest

import embedlm
from embedlm.backbone.gguf_file import read_gguf
from embedlm.backbone.gguf_tokenizer import gguf_tokenizer
from embedlm.errors import ModelError
from tests.backbone.gguf_files import write_gguf
from tests.models import build

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 12: "d"}
U32, I32, F32, FLAG, TEXT, LIST = 4, 5, 6, 7, 8, 9
GGML = "tokenizer.ggml."


class Parts:
    """A file in parts, of which each can be changed: settings, table of tensors, values."""

    def __init__(self, content: bytes):
        self.content, self.place = content, 8
        tensors, settings = self.number("Q"), self.number("Q")
        self.settings = {}
        for _ in range(settings):
            name = self.text().decode()
            kind = self.number("I")
            self.settings[name] = (kind, self.value(kind))
        self.tensors = [
            [
                self.text().decode(),
                [self.number("Q") for _ in range(self.number("I"))],
                self.number("I"),
                self.number("Q"),
            ]
            for _ in range(tensors)
        ]
        self.values = content[-(-self.place // 32) * 32 :]

    def number(self, letter):
        size = struct.calcsize(letter)
        self.place += size
        return struct.unpack(f"<{letter}", self.content[self.place - size : self.place])[0]

    def text(self):
        size = self.number("Q")
        self.place += size
        return self.content[self.place - size : self.place]

    def value(self, kind):
        if kind == LIST:
            inner = self.number("I")
            return inner, [self.value(inner) for _ in range(self.number("Q"))]
        return self.text() if kind == TEXT else self.number(SCALARS[kind])

    def write(self, path, more=()):
        """Write the file, with `more` settings behind its own."""
        settings = [*self.settings.items(), *more]
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(settings))
        for name, (kind, value) in settings:
            head += _bytes(TEXT, name) + struct.pack("<I", kind) + _bytes(kind, value)
        for name, sizes, kind, start in self.tensors:
            head += _bytes(TEXT, name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            head += struct.pack("<IQ", kind, start)
        path.write_bytes(head + bytes(-len(head) % 32) + self.values)
        return path


def _bytes(kind, value):
    if kind == LIST:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(_bytes(inner, v) for v in values)
    if kind == TEXT:
        value = value.encode() if isinstance(value, str) else value
        return struct.pack("<Q", len(value)) + value
    return struct.pack(f"<{SCALARS[kind]}", value)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    build("llama", folder / "folder", intermediate_size=64)
    return write_gguf(folder / "folder", folder / "model.gguf", "Q8_0").read_bytes()


@pytest.fixture
def parts(content, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))
    return Parts(content)


@pytest.fixture
def told(parts, tmp_path):
    """Return what is said of the changed file; nothing of it is kept."""

    def tell(more=()):
        path = parts.write(tmp_path / "model.gguf", more)
        with pytest.raises(ModelError) as refused:
            embedlm.load(path, "plain-mean")
        message = str(refused.value)
        assert str(path) in message
        assert str(tmp_path / "cache") not in message
        assert not list((tmp_path / "cache").rglob("config.json")) or "tensor" in message
        return message

    return tell


def test_the_parts_are_the_file(parts, content, tmp_path):
    assert parts.write(tmp_path / "model.gguf").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("llama.context_length", [(F32, 256.0), (TEXT, "x"), (FLAG, True), (U32, 2**32 - 1)]),
        ("llama.block_count", [(U32, 2**31 - 1), (U32, 2), (I32, -1)]),
        ("llama.attention.head_count", [(LIST, (U32, [4, 4, 4])), (U32, 0)]),
        ("llama.attention.layer_norm_rms_epsilon", [(F32, float("nan")), (F32, float("inf"))]),
        ("llama.rope.freq_base", [(F32, -1.0), (TEXT, "10000"), (12, 1e300)]),
        ("llama.attention.causal", [(U32, 1), (TEXT, "no")]),
        ("split.count", [(TEXT, "x"), (LIST, (U32, [1]))]),
        ("general.type", [(U32, 3)]),
        ("general.alignment", [(U32, 3), (FLAG, True), (TEXT, "32"), (U32, 0)]),
        ("tokenizer.chat_template", [(U32, 3), (LIST, (U32, []))]),
        (f"{GGML}add_bos_token", [(TEXT, "no"), (U32, 0), (F32, float("nan"))]),
        (f"{GGML}bos_token_id", [(U32, 400), (I32, -1), (U32, 2**32 - 1), (TEXT, "<s>")]),
        (f"{GGML}eot_token_id", [(U32, 400)]),
        (f"{GGML}token_type", [(TEXT, "x"), (LIST, (I32, [1])), (LIST, (U32, []))]),
        (f"{GGML}scores", [(LIST, (F32, [0.0])), (LIST, (U32, [0] * 400))]),
        (f"{GGML}merges", [(TEXT, "a b"), (LIST, (TEXT, ["ab"])), (LIST, (TEXT, ["a b c"]))]),
        (f"{GGML}tokens", [(LIST, (U32, [1])), (TEXT, "x")]),
    ],
)
def test_a_setting_of_another_type_or_size_is_refused_by_name(parts, told, name, values):
    for value in values:
        parts.settings[name] = value
        assert name in told()


@pytest.mark.parametrize("name", ["llama.embedding_length", f"{GGML}tokens", f"{GGML}merges"])
def test_a_setting_that_is_needed_is_missed_by_name(parts, told, name):
    del parts.settings[name]
    assert name in told() or "0 tokens" in told()


def test_a_vocabulary_that_contradicts_itself(parts, told):
    kind, (inner, tokens) = parts.settings[f"{GGML}tokens"]
    parts.settings[f"{GGML}tokens"] = (kind, (inner, [*tokens, b"more"]))
    assert "401 tokens and embeddings of 400" in told()
    parts.settings[f"{GGML}tokens"] = (kind, (inner, [*tokens[:2], tokens[1], *tokens[3:]]))
    assert "'<s>' more than once" in told()
    parts.settings[f"{GGML}tokens"] = (kind, (inner, tokens))
    del parts.settings[f"{GGML}bos_token_id"]
    assert f"{GGML}bos_token_id" in told()


def test_a_setting_or_a_tensor_that_is_there_twice(parts, told):
    name = "llama.rope.freq_base"
    assert f"sets {name} twice" in told([(name, (F32, 1.0))])
    parts.tensors.append([parts.tensors[1][0], *parts.tensors[2][1:]])
    assert "'blk.0.attn_q.weight' twice" in told()


def test_tensors_lie_one_behind_another(parts, told, content):
    _, sizes, _, start = parts.tensors[1]
    for place, value in ((3, 0), (3, start + 1), (3, 2**64 - 32), (2, 1), (2, 2), (2, 99)):
        before = parts.tensors[1][place]
        parts.tensors[1][place] = value
        assert "'blk.0.attn_" in told()
        parts.tensors[1][place] = before
    for shape in ([1024], [*sizes, 1], [32, 0], []):
        parts.tensors[1][1] = shape
        assert "'blk.0.attn_q.weight'" in told()
    parts.tensors[1][1] = sizes
    parts.tensors = [row for row in parts.tensors if row[0] != "output_norm.weight"]
    assert "output" in told()


def test_weights_that_are_not_finite_are_named(parts, told):
    start = parts.tensors[1][3]
    for damage in (b"\x00\x7c", b"\x00\x7e"):  # infinity, NaN: the scale of a block
        parts.values = parts.values[:start] + damage + parts.values[start + 2 :]
        assert "'blk.0.attn_q.weight' holds NaN or infinity" in told()


def test_a_file_cut_anywhere_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    begin = read_gguf(path).start
    for end in [*range(0, begin, 97), *range(begin, len(content), 2999), len(content) - 1]:
        path.write_bytes(content[:end])
        with pytest.raises(ModelError, match=r"truncated|no GGUF|cannot be read"):
            embedlm.load(path, "plain-mean")


@pytest.mark.parametrize(("architecture", "silent"), [(b"llama", "▁"), (b"gemma", "")])
def test_whether_a_text_begins_with_a_space_is_read(parts, tmp_path, architecture, silent):
    _as_sentencepiece(parts, architecture)
    for setting, begins in ((None, silent), (True, "▁"), (False, "")):
        if setting is not None:
            parts.settings[f"{GGML}add_space_prefix"] = (FLAG, setting)
        path = parts.write(tmp_path / f"{setting}.gguf")
        tokenizer = gguf_tokenizer(read_gguf(path))
        tokens = tokenizer.convert_ids_to_tokens(tokenizer("plants make").input_ids)
        assert "".join(tokens) == f"<s>{begins}plants▁make"


def _as_sentencepiece(parts, architecture: bytes) -> None:
    """Give a file a vocabulary of SentencePiece's kind, and another network."""
    for name in ("merges", "pre"):
        del parts.settings[GGML + name]
    kind, (inner, tokens) = parts.settings[f"{GGML}tokens"]
    spelt = [token.replace("Ġ".encode(), "▁".encode()) for token in tokens]
    parts.settings[f"{GGML}tokens"] = (kind, (inner, spelt))
    parts.settings[f"{GGML}scores"] = (LIST, (F32, [-float(rank) for rank in range(len(spelt))]))
    parts.settings[f"{GGML}model"] = (TEXT, b"llama")
    parts.settings["general.architecture"] = (TEXT, architecture)
    for name in [name for name in parts.settings if name.startswith("llama.")]:
        parts.settings[name.replace("llama", architecture.decode())] = parts.settings.pop(name)
