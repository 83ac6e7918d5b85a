"""A folder of files becomes a folder of files: what is read, how it is called, what is refused."""

import gzip
import json
import logging
from pathlib import Path

import pytest

from embedlm.bulk import encode_folder
from embedlm.errors import InputError

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    return path


def test_every_form_is_read_and_names_differ(model, folder, tmp_path, caplog):
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "a.jsonl").write_text('"three"\n')
    (folder / "b.md").write_text("# Four\n\nfive\nsix\n")
    (folder / "c.tsv.gz").write_bytes(gzip.compress(b'text\n"seven\n'))
    (folder / "c.txt.md").write_text("eight")
    (folder / "c.txt").write_text("nine")
    (folder / ".hidden.txt").write_text("secret")
    (folder / "picture.png").write_bytes(b"\xff")
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        reports = encode_folder(model, folder, out)
    assert "cannot be read: picture.png" in caplog.text
    assert "hidden" not in caplog.text
    rows = {path.name: parquet.read_table(path).num_rows for path in sorted(out.glob("*.parquet"))}
    assert rows == {
        "a.jsonl.parquet": 1,
        "a.txt.parquet": 2,
        "b.parquet": 2,
        "c.tsv.gz.parquet": 1,
        "c.txt.md.parquet": 1,
        "c.txt.parquet": 1,
    }
    assert sum(report.rows for report in reports) == 8
    again = encode_folder(model, folder, out)
    assert all(report.resumed == report.blocks for report in again)


def test_what_lies_below_is_encoded_too_but_neither_hidden_files_nor_the_outputs(
    model, folder, monkeypatch
):
    for name in ("a.txt", "inner/a.txt", "inner/deep/b.md", ".git/c.txt", "inner/.d.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("one\n")
    monkeypatch.chdir(folder)
    for source, out in ((".", "out"), (folder, "out"), (".", folder / "out")):
        reports = encode_folder(model, source, out)
        assert [report.rows for report in reports] == [1, 1, 1]
        found = sorted(file.relative_to(out).as_posix() for file in Path(out).rglob("*.parquet"))
        assert found == ["a.parquet", "inner/a.parquet", "inner/deep/b.parquet"]
    assert all(report.resumed == report.blocks for report in reports)
    above = encode_folder(model, "inner", ".")
    assert (len(above), Path("deep/b.parquet").is_file()) == (2, True)


def test_only_the_first_of_many_left_out_files_are_named(model, folder, tmp_path, caplog):
    (folder / "a.txt").write_text("one\n")
    for number in range(13):
        (folder / f"{number:02}.png").write_bytes(b"")
    encode_folder(model, folder, tmp_path / "out")
    assert "09.png and 3 more" in caplog.text


def test_a_damaged_note_means_the_file_is_done_again(model, folder, tmp_path):
    (folder / "a.txt").write_text("one\n")
    out = tmp_path / "out"
    encode_folder(model, folder, out)
    for text in ("{", "[]", json.dumps({"manifest": {}})):
        (out / ".a.json").write_text(text)
        assert encode_folder(model, folder, out)[0].resumed == 0
    assert encode_folder(model, folder, out)[0].resumed == 1


@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.txt", "x.jsonl.gz"])
def test_a_folders_output_is_a_folder(model, folder, tmp_path, name):
    (folder / "a.txt").write_text("one\n")
    with pytest.raises(InputError, match=rf"is a folder, so the output is one too.*{name}"):
        encode_folder(model, folder, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_other_outputs_are_refused(model, folder, tmp_path):
    with pytest.raises(InputError, match="holds no file that ends in one of"):
        encode_folder(model, folder, tmp_path / "out")
    (folder / "a.txt").write_text("one\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is the name of a file"):
        encode_folder(model, folder, tmp_path / "file")
    with pytest.raises(InputError, match="the output is the input folder"):
        encode_folder(model, folder, folder)
    with pytest.raises(InputError, match="rejects cannot be set aside for a whole folder"):
        encode_folder(model, folder, tmp_path / "out", rejects="bad.jsonl")
