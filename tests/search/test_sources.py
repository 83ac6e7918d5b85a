"""Sources and indexes as they are found: in part unreadable, edited by hand, without old texts."""

import json
import os
import subprocess
import sys

import pytest

import embedlm
from embedlm.errors import InputError
from embedlm.search import Index, build_index, read_documents


@pytest.fixture(scope="module")
def index(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "notes.md").write_text("Plants make food.\n\nA dog runs.\n")
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    build_index(folder / "notes.md", folder / "i.index", model, store="exact")
    return folder / "i.index"


def test_a_note_tells_of_documents_that_the_source_no_longer_holds(run, with_model, tmp_path):
    notes, place = tmp_path / "notes.md", tmp_path / "i.index"
    notes.write_text("Plants make food.\n\nA dog runs.\n")
    command = ("index", notes, "-o", place)
    assert "note:" not in run(*command, *with_model, "--store", "exact").err
    notes.write_text("A new line.\n\nPlants make food.\n\nA dog runs.\n")
    found = run(*command, "--json")
    assert (json.loads(found.out)["documents"], json.loads(found.out)["gone"]) == (3, 0)
    notes.write_text("A dog runs.\n")
    found = run(*command)
    assert "lacks 2 documents of the index" in found.err
    assert "--sync takes them out" in found.err
    found = run(*command, "--sync")
    assert "1 document in 1 passage;" in found.out
    assert "note:" not in found.err


SCRIPT = """
import sys
import embedlm
from embedlm.search import Index, build_index, delete_documents
print("begun")
model = embedlm.load(sys.argv[1], "plain-mean", device="cpu")
build_index("notes.md", "i.index", model)
with Index.open("i.index", model) as index:
    print(len(index))
delete_documents("i.index", ["notes.md:1"])
with Index.open("i.index", model) as index:
    print(len(index))
"""


def test_a_script_that_changes_an_open_index_runs_once(tiny_llama, tmp_path):
    pytest.importorskip("qdrant_edge")
    (tmp_path / "notes.md").write_text("Plants make food.\n\nA dog runs.\n")
    (tmp_path / "script.py").write_text(SCRIPT)  # without `if __name__ == "__main__"`
    done = subprocess.run(
        [sys.executable, "script.py", tiny_llama],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["begun", "2", "1"]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    (tmp_path / "a.md").write_text("Plants make food.")
    (tmp_path / "inner").mkdir()
    true = os.scandir

    def denied(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return true(path)

    monkeypatch.setattr(os, "scandir", denied)  # root may read all folders
    with pytest.raises(InputError, match=r"inner' cannot be read \(Permission denied\)"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("name", ["model", "heads", "analyzer", "average", "generation", "first"])
def test_facts_of_another_kind_are_damage(name, index, tmp_path):
    facts = json.loads((index / "index.json").read_text())
    for value in (5 if name != "average" else "5", [] if name != "heads" else {}, {"a": 1}):
        if name == "first" and isinstance(value, dict):
            continue
        place = tmp_path / "i.index"
        (place / facts["generation"]).mkdir(parents=True, exist_ok=True)
        (place / "index.json").write_text(json.dumps({**facts, name: value}))
        with pytest.raises(InputError, match=r"index\.json is damaged"):
            Index.open(place)


def test_files_of_other_forms_are_told_by_their_endings(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    for name in ("a.docx", "sub/b.docx", "c.png", "LICENSE", ".hidden.docx"):
        (tmp_path / name).write_bytes(b"PK")
    (tmp_path / "d.txt").write_text("Oil floats.")
    assert len(list(read_documents(tmp_path))) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"left out of {tmp_path}, since such files cannot be read: .docx (2), LICENSE (1), .png (1)"
    ]
