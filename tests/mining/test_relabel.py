"""RLHN and ARHN by real requests to a server on loopback."""

import inspect
import threading

import pytest

from embedlm.cli.mine import Judges
from embedlm.errors import GenerationError, InputError
from embedlm.generation import EndpointGenerator
from embedlm.mining import mine, score
from tests.mining.judge_server import PART, TRUE, JudgeServer

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDLM_CACHE", str(tmp_path / "cache.sqlite"))


@pytest.fixture
def server():
    with JudgeServer() as started:
        threading.Thread(target=started.serve_forever, args=(0.01,), daemon=True).start()
        yield started
        started.shutdown()


@pytest.fixture
def llm(server):
    return EndpointGenerator(server.url, "judge", wait=0.01, retries=1)


def planted(true, part=0, plain=20):
    """Return a corpus in which BM25 finds false negatives first, and a record."""
    corpus = [f"river river river {TRUE} number {i}" for i in range(true)]
    corpus += [f"river river {PART} number {i}" for i in range(part)]
    corpus += [f"river and much else of kind {i} that is far longer" for i in range(plain)]
    return corpus, [{"query": "river", "positives": ["river positive"]}]


def test_false_negatives_become_positives_and_others_take_their_place(llm, server):
    corpus, records = planted(3)
    mined = mine(records, corpus, model="bm25", k=5, llm=llm)
    (found,) = mined.records
    assert found["positives"] == ["river positive", *corpus[:3]]
    assert len(found["negatives"]) == 5
    assert not any(TRUE in text for text in found["negatives"])
    assert mined.report["positives_added"] == mined.report["dropped"]["judge"]["count"] == 3
    assert found["provenance"]["positives"]["relabelled"] == ["1", "2", "3"]
    assert len(found["scores"]) == 9
    prompt = server.requests[0]["messages"][0]["content"]
    assert "river positive" in prompt
    assert server.requests[0]["temperature"] == 0.1


def test_the_other_modes(llm):
    corpus, records = planted(3)
    removed = mine(records, corpus, model="bm25", k=5, llm=llm, mode="remove")
    (found,) = removed.records
    assert found["positives"] == ["river positive"]
    assert not any(TRUE in text for text in found["negatives"])
    dropped = mine(records, corpus, model="bm25", k=5, llm=llm, mode="drop")
    assert dropped.records == []
    assert list(dropped.report["set_aside"]) == ["judge: a false negative"]


@pytest.mark.parametrize(("count", "kept"), [(8, True), (9, False)])
def test_the_rule_of_eight(llm, count, kept, tmp_path):
    corpus, records = planted(count)
    out = tmp_path / "mined.jsonl"
    mined = mine(records, corpus, model="bm25", k=10, llm=llm, output=out)
    assert mined.report["written"] == kept
    assert out.with_name("mined.jsonl.rejects.jsonl").exists() != kept
    if not kept:
        assert "more than 8" in out.with_name("mined.jsonl.rejects.jsonl").read_text()


def test_eight_is_the_usual_bound_of_the_command_too(llm):
    """RLHN's own code keeps a record of up to 8: `len(indices) <= self.threshold`, 8."""
    assert inspect.signature(mine).parameters["most"].default == Judges().most == 8
    corpus, records = planted(9)
    kept = [
        mine(records, corpus, model="bm25", k=10, llm=llm, most=most).report["written"]
        for most in (8, 9)
    ]
    assert kept == [0, 1]


def test_the_second_model_judges_what_the_first_flags(llm, server):
    corpus, records = planted(3)
    with JudgeServer() as strong:
        threading.Thread(target=strong.serve_forever, args=(0.01,), daemon=True).start()
        strong.said = lambda prompt, right: right.replace(
            "<better>1, 2, 3</better><worse>none", "<better>2</better><worse>1, 3"
        )
        second = EndpointGenerator(strong.url, "strong", wait=0.01, retries=1)
        (found,) = mine(records, corpus, model="bm25", k=5, llm=[llm, second]).records
        strong.shutdown()
    assert found["positives"] == ["river positive", corpus[1]]
    asked = strong.requests[0]["messages"][0]["content"]
    assert asked.count("[answers]") == 3
    assert "much else" not in asked
    assert {corpus[0], corpus[2]} < {*found["negatives"]}


@pytest.mark.parametrize(
    "said",
    [
        "I think that 1 and 2 are fine.",
        "<verdict><better>1</better></verdict>",
        "<verdict><better>1</better><worse>2</worse></verdict>",  # 3 to 5 were not judged
        "<verdict><better>1, 99</better><worse>2, 3, 4, 5</worse></verdict>",
        "",
    ],
)
def test_an_answer_that_cannot_be_read_is_no_acquittal(llm, server, said, tmp_path):
    corpus, records = planted(3)
    server.said = lambda prompt, right: said
    mined = mine(records, corpus, model="bm25", k=5, llm=llm)
    assert mined.records == []
    assert list(mined.report["set_aside"]) == ["judge: its answer could not be read twice"]
    assert [request["max_tokens"] for request in server.requests] == [2048, 4096]


def test_an_answer_is_asked_for_twice(llm, server):
    corpus, records = planted(3)
    tries = iter(["<verdict><better>1"])
    server.said = lambda prompt, right: next(tries, right)
    (found,) = mine(records, corpus, model="bm25", k=5, llm=llm).records
    assert len(found["positives"]) == 4


def test_what_was_answered_is_not_asked_again(llm, server):
    corpus, records = planted(3)
    first = mine(records, corpus, model="bm25", k=5, llm=llm)
    count = len(server.requests)
    assert mine(records, corpus, model="bm25", k=5, llm=llm).records == first.records
    assert len(server.requests) == count


def test_a_server_that_fails_stops_the_job_and_loses_nothing(llm, server, tmp_path):
    corpus, records = planted(3)
    more = [{**records[0], "query": f"river {i}"} for i in range(20)]
    out = tmp_path / "mined.jsonl"
    server.script = [200] * 32 + [500] * 100  # one block of 16, judged in two rounds
    with pytest.raises(GenerationError, match=r"check the endpoint's address.* and run again"):
        mine(more, corpus, model="bm25", k=5, llm=llm, output=out)
    assert not out.exists()
    assert (tmp_path / "mined.jsonl.part" / "blocks").is_dir()
    server.script = []
    mine(more, corpus, model="bm25", k=5, llm=llm, output=out)
    assert len(out.read_text().splitlines()) == 20
    assert not (tmp_path / "mined.jsonl.part").exists()
    assert not (tmp_path / "mined.jsonl.work").exists()


def test_arhn_orders_passages_and_removes_those_that_answer_in_part(llm, server):
    corpus, records = planted(2, part=2)
    mined = mine(records, corpus, model="bm25", k=6, llm=llm, judge="arhn")
    (found,) = mined.records
    assert found["positives"] == ["river positive", *corpus[:2]]  # above the known positive
    assert not any(PART in text for text in found["negatives"])  # below it, with a snippet
    assert len(found["negatives"]) == 6
    assert mined.report["dropped"]["judge"]["count"] == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"judge": "rlnh"}, "Did you mean 'rlhn'"),
        ({"mode": "relable"}, "Did you mean 'relabel'"),
        ({"most": -1}, "most is -1"),
        ({"llm": ["http://a/v1#b"] * 3}, "give one, or two"),
    ],
)
def test_options_are_checked_before_anything_is_asked(options, told):
    with pytest.raises(InputError, match=told):
        mine([], ["a"], model="bm25", **options)


def test_scores_that_a_language_model_writes(llm, server):
    records = [
        {"query": "river", "positives": ["one two three"], "negatives": ["one", "x " * 30]},
        {"query": "sea", "positives": ["bad answer here"], "negatives": ["one two"]},
    ]
    server.said = lambda prompt, right: "no idea" if "bad answer" in prompt else right
    scored = score(records, llm=llm)
    (found,) = scored.records
    assert found["scores"] == [3.0, 1.0, 10.0]
    assert found["provenance"]["scores"]["kind"] == "llm"
    assert scored.report["set_aside"]["count"] == 1
