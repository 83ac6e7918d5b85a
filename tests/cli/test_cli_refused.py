"""Options that a call cannot use, names that cannot be, and files that are not ours: refused."""

import json
import re

import numpy as np
import pytest

import embedlm
from embedlm.bulk import encode_file, encode_folder
from embedlm.errors import InputError
from embedlm.jobs.interrupts import KEPT, keeping
from embedlm.studies.demonstrations import search_demonstrations


@pytest.fixture(scope="module")
def model(tiny_llama):
    return embedlm.load(tiny_llama, "plain-mean", device="cpu", lm_head=True)


@pytest.fixture
def files(tmp_path):
    """Return a folder with an input of each kind."""
    (tmp_path / "in.txt").write_text("light\nfox\n")
    (tmp_path / "in.md").write_text("plants make\n\nfood\n")
    (tmp_path / "in.jsonl").write_text('{"body": "a", "id": 1}\n')
    (tmp_path / "in.csv").write_text("body,id\na,1\n")
    (tmp_path / "mine.jsonl").write_text('{"my": "data"}\n')
    (tmp_path / "mine.npy").write_text("my data")
    return tmp_path


ENCODE = ("encode", "in.txt", "-o", "out.npy")
SEARCH = ("search", "in.md", "light")
UNUSED = [
    ((*ENCODE, "--text-field", "body"), "a .txt file has no field 'body'"),
    (("encode", "-", "-o", "out.npy", "--text-field", "body"), "no field 'body'.*--format"),
    ((*ENCODE, "--generator", "x"), "--generator .* the recipe 'plain-mean' rewrites none"),
    ((*ENCODE, "--fit", "in.txt"), "--fit counts word frequencies, which .*'plain-mean' does not"),
    ((*ENCODE, "--calibration", "in.txt"), "the precision is float32, which has none"),
    (
        ("encode", "in.jsonl", "-o", "out.npy", "--id-field", "body", "--text-field", "body"),
        "no ids",
    ),
    (("encode", "in.txt", "-o", "o.npz", "--heads", "sparse", "--dim", "4"), "dim changes dense"),
    (("encode", "in.txt", "-o", "o.npz", "--heads", "sparse", "--normalize"), "normalize changes"),
    (
        ("encode", "in.txt", "-o", "o.npz", "--heads", "sparse", "--precision", "int8"),
        "precision ch",
    ),
    ((*SEARCH, "--text-field", "body"), "--text-field.* is read as .md; leave it out"),
    ((*SEARCH, "--quoting"), "is for .csv and .tsv"),
    (("search", "in.jsonl", "light", "--split", "line", "--text-field", "body"), "says where .txt"),
    ((*SEARCH, "--instruction", "x"), "has no {instruction}"),
    ((*SEARCH, "--mode", "dens"), "'dens' is not known; .*Did you mean 'dense'"),
    (("search", "in.md", " "), "the query is empty"),
    (("similarity", "a", "b", "--set", "pooling.kind=mean", "--set", "pooling.kind=last"), "twice"),
    (("similarity", "a", "b", "--weights", "nan"), "--weights 'nan': write a number for each"),
]
NAMES = [
    (("encode", "", "-o", "out.npy"), "FILE_OR_DIR: the name is empty"),
    (("encode", "in.txt", "-o", ""), "-o: the name is empty"),
    ((*ENCODE, "--rejects", ""), "--rejects: the name is empty"),
    (("search", "", "light"), "INDEX_OR_FILE: the name is empty"),
    (("encode", "in.txt", "-o", "x" * 300 + ".npy"), "is too long"),
    (("encode", "in.txt", "-o", "a\0.npy"), "holds NUL"),
    (("encode", "in.txt", "-o", "\udcff.npy"), "is not valid UTF-8"),
    (("similarity", "a", "\udcff"), "the argument '.udcff' is not valid UTF-8"),
    ((*ENCODE, "--instruction", "\udcff"), "is not valid UTF-8"),
    (("encode", "in.txt", "-o", "-"), "cannot be standard output"),
    (
        ("encode", "in.txt", "-o", "--dim", "4"),
        "needs a value|one argument too many|unknown",
    ),
    (("encode", "in.txt", "-o", "/proc/x.npy"), "the folder /proc/x.npy.part.* cannot be made"),
    ((*ENCODE, "--dim", "1.5"), "--dim: '1.5' is not allowed; give a whole number above 0"),
    ((*ENCODE, "--dim", "nan"), "--dim: 'nan' is not allowed"),
    ((*ENCODE, "--max-length", "1e3"), "--max-length: '1e3' is not allowed"),
    ((*ENCODE, "--block", "9" * 30), "--block: '9+' is too large; give 2,147,483,647 at most"),
    ((*ENCODE, "--workers", "99999999"), "workers is 99999999"),
    ((*SEARCH, "-k", "0"), "-k: '0' is not allowed"),
]


@pytest.mark.parametrize(("words", "told"), [*UNUSED, *NAMES])
def test_what_cannot_be_used_is_refused(run, with_model, files, monkeypatch, words, told):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    words = [
        str(files / word) if word in ("in.txt", "in.md", "in.jsonl") else word for word in words
    ]
    if words[1:3] == ["in.txt", "-o"]:
        words[3] = str(files / words[3])
    message = run(*words, *with_model).one_line()
    assert re.search(told, message)
    assert not re.search("fault|Errno|: none", message)
    assert [path for path in sorted(files.iterdir()) if path.name != ".command"] == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate", "builtin", "--words", "3", "--data", "."), "--words.* stsb_dev have none"),
        (("parity", "st:x", "builtin", "--recipe-a", "echo"), "'st:x', which EmbedLM does not run"),
        (("parity", "builtin", "builtin", "--tolerance", "nan"), "'nan' is not allowed"),
        (("parity", "http://h/v1#a", "st:b", "--dtype", "float32"), "it runs neither"),
        (("merge", "a", "b", "-o", ""), "-o: the name is empty"),
        (("merge", "a", "", "-o", "c"), "MODEL: the name is empty"),
        (("merge", "a", "b", "-o", "c" * 300), "is too long"),
        (("train", ""), "PLAN: the name is empty"),
        (("demonstrations", "builtin", "--dev", ""), "--dev: the name is empty"),
        (("recipes", "show", ""), "NAME: the name is empty"),
        (("similarity", "a", "b", "-m", ""), "-m: the name is empty"),
        (("similarity", "a", "b", "--adapter", ""), "--adapter: the name is empty"),
    ],
)
def test_other_commands_refuse_likewise(run, files, words, told):
    more = ["--texts", files / "in.txt"] if words[0] == "parity" else []
    assert re.search(told, run(*words, *more).one_line())


def test_a_folders_files_share_options_that_some_of_them_use(
    run, with_model, files, tmp_path_factory
):
    for name in ("in.jsonl", "mine.jsonl", "mine.npy"):
        (files / name).unlink()
    options = ["--text-field", "body", "--quoting", *with_model]
    assert run("search", files, "light", *options).code == 0
    out = tmp_path_factory.mktemp("vectors")
    done = run("encode", files, "-o", out, *options)
    assert done.code == 0, done.err
    (files / "in.csv").unlink()
    new = out / "new"
    for unused, told in (
        (options[:2], "--text-field.* is read as .md, .txt; leave it out"),
        (options[2:3], "is for .csv and .tsv"),
        (["--format", "txt"], "the format is told by each file's name"),
    ):
        done = run("encode", files, "-o", new, *unused, *with_model)
        assert re.search(told, done.one_line())
        assert not new.exists()


def test_a_folder_is_named_by_a_point(run, with_model, files):
    assert run("search", files / ".", "light", *with_model, "--text-field", "body").code == 2
    done = run("encode", ".", "-o", files / "out.npy", *with_model)
    assert "is a folder, so the output is one too" in done.one_line()


# -- files that are not ours ----------------------------------------------------------------------


@pytest.mark.parametrize("content", ['{"my": "data"}\n', "text", '{"file": "x"}\n', b"\xff\x00"])
def test_rejects_never_overwrite_something_else(model, files, content):
    data = content if isinstance(content, bytes) else content.encode()
    (files / "bad.jsonl").write_bytes(data)
    with pytest.raises(InputError, match="holds something else than rejects"):
        encode_file(model, files / "in.txt", files / "out.npy", rejects=files / "bad.jsonl")
    assert (files / "bad.jsonl").read_bytes() == data
    assert not (files / "out.npy").exists()


def test_rejects_are_written_anew(model, files):
    (files / "in.txt").write_bytes(b"light\n\xff\n")
    (files / "bad.jsonl").write_text("")
    for _ in range(2):
        encode_file(model, files / "in.txt", files / "out.npy", rejects=files / "bad.jsonl")
    assert json.loads((files / "bad.jsonl").read_text())["line"] == 2


@pytest.mark.parametrize("suffix", ["npy", "npz", "jsonl", "parquet"])
def test_an_output_never_overwrites_something_else(model, files, suffix):
    out = files / f"out.{suffix}"
    foreign = [b"my data", b"", b'{"id": 1, "text": "mine"}\n']
    if suffix == "npy":
        np.save(out, np.arange(3))
        foreign.append(out.read_bytes())
    if suffix == "jsonl":
        foreign.remove(b"")  # what an empty input gives
    for data in foreign:
        out.write_bytes(data)
        with pytest.raises(InputError, match="embedlm encode has not written"):
            encode_file(model, files / "in.txt", out, restart=True)
        assert out.read_bytes() == data
    out.unlink()
    for dim in (8, 16):
        assert encode_file(model, files / "in.txt", out, dim=dim).dim == dim
    (files / "one").mkdir()
    (files / "one" / "a.txt").write_text("light\n")
    (files / "vectors").mkdir()
    (files / "vectors" / "a.parquet").write_text("my data")
    with pytest.raises(InputError, match="embedlm encode has not written"):
        encode_folder(model, files / "one", files / "vectors")


def test_a_log_is_never_mixed_with_something_else(model, files, tiny_llama):
    shown = embedlm.load(tiny_llama, "prompteol-icl", device="cpu")
    pairs = [("light", "fox", 1.0), ("a", "a", 5.0)]
    with pytest.raises(InputError, match="holds something else than the scores of a search"):
        search_demonstrations(shown, pairs, limit=1, log=files / "mine.jsonl")
    assert (files / "mine.jsonl").read_text() == '{"my": "data"}\n'


# -- interrupts -----------------------------------------------------------------------------------


def test_an_interrupt_says_what_is_kept():
    for anything in (True, False):
        with pytest.raises(KeyboardInterrupt) as caught, keeping(lambda: anything):  # noqa: B023
            raise KeyboardInterrupt
        assert (KEPT in getattr(caught.value, "__notes__", [])) is anything


@pytest.mark.parametrize(
    ("kept", "words", "told"),
    [
        (False, ["encode"], "nothing was finished; to try again, give the same command again"),
        (True, ["encode"], KEPT),
        (True, ["train", "--restart"], f"{KEPT} without --restart"),
        (False, ["serve"], "the server was not ready yet"),
        (False, ["mcp"], "the server was not ready yet"),
    ],
)
def test_a_stopped_command_says_how_it_goes_on(monkeypatch, capsys, kept, words, told):
    from embedlm.cli import _app

    def stopped(_):
        with keeping(lambda: kept):
            raise KeyboardInterrupt

    monkeypatch.setattr(_app, "app", stopped)
    with pytest.raises(SystemExit) as ended:
        _app.main(words)
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"embedlm: interrupted; {told}\n"
