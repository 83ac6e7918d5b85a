"""Outputs that are inputs, and folders that are named in a roundabout way."""

import os

import pytest

from embedlm.data import Source
from embedlm.errors import InputError
from embedlm.jobs import new_folder
from embedlm.jobs.names import check_apart, check_file, make_folder


@pytest.fixture
def place(tmp_path):
    """Return a folder with a file, a folder of documents and a link to the file."""
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "given", "told"),
    [
        ("a.jsonl", "a.jsonl", "is an input, too"),
        ("docs/../a.jsonl", "a.jsonl", "is an input, too"),
        ("link.jsonl", "a.jsonl", "is an input, too"),
        ("a.jsonl", "link.jsonl", "is an input, too"),
        ("new.jsonl", "new.jsonl", "is an input, too"),
        ("docs", "docs", "is an input, too"),
        ("docs/out.html", "docs", "lies inside the input"),
        ("docs/more/out", "docs", "lies inside the input"),
        (".", "a.jsonl", "holds the input"),
    ],
)
def test_an_output_is_never_an_input(place, output, given, told):
    with pytest.raises(InputError, match=told):
        check_apart(place / output, [None, 3, place / given])


def test_a_link_that_leads_to_itself_is_no_fault(place):
    loop = place / "loop.jsonl"
    loop.symlink_to(loop)
    check_apart(place / "out.jsonl", [loop])
    check_apart(loop, [place / "a.jsonl"])
    with pytest.raises(InputError, match="is an input, too"):
        check_apart(loop, [loop])
    with pytest.raises(InputError, match="Too many levels of symbolic links"):
        Source(loop)


def test_an_output_beside_the_inputs_is_allowed(place, monkeypatch):
    monkeypatch.chdir(place)
    check_apart(place / "out.jsonl", ["-", "owner/name", None, object(), place / "a.jsonl", "docs"])


def test_a_file_that_cannot_be_written_is_refused_at_once(place):
    for output, told in (
        ("x.txt", "another ending than .html, .md; end its name in one of these"),
        ("docs.html", "is a folder"),
        ("none/x.html", "is not there; make it first"),
        ("a.jsonl/x.html", "is not there; make it first"),
    ):
        (place / "docs.html").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=told):
            check_file(str(place / output), [".html", ".md"])
    with pytest.raises(InputError, match=r"work folder .* cannot be made: Not a directory"):
        make_folder(place / "a.jsonl" / "work", "work folder")


def test_a_folder_named_by_way_of_itself_is_replaced_whole(tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    (target / "old").write_text("old")
    with new_folder(target / ".." / "m") as folder:
        (folder / "new").write_text("new")
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["m"]


def test_a_link_to_a_folder_keeps_leading_to_it(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "link").symlink_to("m")
    with new_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "m") == ["new"]
