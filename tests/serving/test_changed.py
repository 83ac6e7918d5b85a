"""A served index that is changed, again and again, while it is searched."""

import json
import shutil
import signal
import threading

import pytest

from embedlm.search import Index, build_index, delete_documents
from embedlm.serving import Mounted
from embedlm.serving.encoding import Served
from tests.serving.conftest import RECORDS, process, running

STORES = pytest.mark.parametrize("store", ["edge", "exact"])


def made(folder, model, store):
    source = folder / "notes.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    build_index(source, folder / "notes", model, store=store)
    return folder / "notes"


def grown(index, model, number):
    """Add a document and return its id."""
    more = index.with_name("more.jsonl")
    more.write_text(json.dumps({"id": f"z{number}", "text": f"Zebra {number} crossed."}) + "\n")
    build_index(more, index, model)
    return f"z{number}"


@STORES
def test_every_change_is_seen_at_the_next_search(model, tmp_path, store):
    index = made(tmp_path, model, store)
    served = Served("tiny", model)
    with running({"tiny": model}, {"notes": Mounted.open("notes", index, [served])}) as place:
        before = place.service.indexes["notes"].index
        for number in range(2):
            new = grown(index, model, number)
            for _ in range(2):
                found = place.post("/v1/search", {"query": f"zebra {number}", "mode": "bm25"})
                assert found.status == 200, found.body
                assert found.json()["hits"][0]["id"] == new
        assert place.service.indexes["notes"].index is not before


@STORES
def test_searches_that_run_while_an_index_changes_are_all_answered(model, tmp_path, store):
    index = made(tmp_path, model, store)
    mounted = Mounted.open("notes", index, [Served("tiny", model)])
    answers, over = [], threading.Event()
    with running({"tiny": model}, {"notes": mounted}) as place:

        def ask():
            while not over.is_set():
                found = place.post("/v1/search", {"query": "glucose", "top_k": 1})
                answers.append((found.status, found.json()["hits"][0]["id"]))

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for one in asking:
            one.start()
        for number in range(2):
            delete_documents(index, [grown(index, model, number)])
        over.set()
        for one in asking:
            one.join()
    assert set(answers) == {(200, "g1")}


@STORES
def test_a_server_whose_index_has_changed_ends_in_order(model, tmp_path, store):
    """It lets go of a generation that is no longer there."""
    index = made(tmp_path, model, store)
    with process("--index", f"notes={index}") as (server, _, lines):
        grown(index, model, 0)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert not [line for line in lines if '"error"' in line]


@STORES
@pytest.mark.parametrize("gone", ["changed", "removed"])
def test_an_open_index_is_closed_after_its_generation_has_gone(model, tmp_path, store, gone):
    index = made(tmp_path, model, store)
    opened = Index.open(index, model)
    if gone == "changed":
        grown(index, model, 0)
    else:
        shutil.rmtree(index)
    assert opened.search("glucose", 1)[0].id == "g1"  # it reads on
    opened.close()
    opened.close()
