"""A folder of files becomes a folder of files: what is read, how it is called, what is refused."""

import gzip
import json
import logging

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
    (folder / "inner").mkdir()
    out = tmp_path / "out"
    with caplog.at_level(logging.WARNING):
        reports = encode_folder(model, folder, out)
    assert "inner, picture.png" in caplog.text
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
