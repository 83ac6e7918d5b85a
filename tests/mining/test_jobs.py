"""The command: killed at random moments, started again, given bad input, in every form."""

import json
import random
import threading

import pytest

from tests.mining.judge_server import JudgeServer


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_job_killed_at_random_moments_gives_the_same_bytes(run, files, with_model, tmp_path):
    records, corpus = files
    options = ("--corpus", corpus, *with_model, "-k", 4, "--filter", "perc_pos=0.97", "--block", 2)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert run("mine", records, "-o", whole, *options).code == 0
    rng = random.Random(0)
    vectors = f"{killed}.work/vectors-*"
    blocks = f"{killed}.part/blocks/*.jsonl"
    for pattern, count in ((vectors, 1), (blocks, 0), (blocks, 2), (blocks, 5), (blocks, 6)):
        moment = (pattern, count, rng.uniform(0, 0.02))
        found = run("mine", records, "-o", killed, *options, kill_at=moment)
        assert found.code in (-9, 0), found.err
        assert not killed.exists() or killed.read_bytes() == whole.read_bytes()
    assert run("mine", records, "-o", killed, *options).code == 0
    assert killed.read_bytes() == whole.read_bytes()
    reports = [
        json.loads((tmp_path / f"{p.name}.report.json").read_text()) for p in (whole, killed)
    ]
    assert {**reports[0], "output": ""} == {**reports[1], "output": ""}
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob("*.work"))


def test_a_full_disk_is_told_and_the_job_goes_on(run, files, tmp_path):
    records, corpus = files
    out, options = tmp_path / "out.jsonl", ("--corpus", corpus, "-m", "bm25", "--block", 2)
    for largest in (500, 12_000):  # the passages; then a block, the index or the output
        told = run("mine", records, "-o", out, *options, largest_file=largest)
        if told.code:
            assert "no space left while writing" in told.one_line()
            assert not out.exists()
    assert run("mine", records, "-o", out, *options).code == 0
    assert len(lines(out)) == len(lines(records))


def test_a_work_folder_that_no_run_has_written_is_left_alone(run, files, with_model, tmp_path):
    """Its files may bear the very names of those that a run keeps there: here the inputs do."""
    records, corpus = files
    before = records.read_bytes(), corpus.read_bytes()
    words = ("mine", records, "--corpus", corpus, "-k", 2)
    told = run(*words, *with_model, "-o", tmp_path / "out.jsonl", "--work", tmp_path)
    assert "holds the input" in told.one_line()
    own = tmp_path / "out.jsonl.work"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    for command in (words, ("score", records)):
        told = run(*command, *with_model, "-o", tmp_path / "out.jsonl")
        assert "holds 'thesis.txt', which no run has written" in told.one_line()
    assert (own / "thesis.txt").read_text() == "mine"
    assert (records.read_bytes(), corpus.read_bytes()) == before
    kept = ("--work", tmp_path / "kept")
    for name in ("a.jsonl", "b.jsonl"):
        assert run(*words, *with_model, "-o", tmp_path / name, *kept).code == 0
    again = ("mine", tmp_path / "kept" / "records.jsonl", *with_model, "-o", tmp_path / "a.jsonl")
    assert "holds the input" in run(*again, *kept).one_line()


def test_a_file_that_no_run_has_written_is_not_replaced(run, files, with_model, tmp_path):
    records, corpus = files
    out = tmp_path / "notes.jsonl"
    commands = [
        ("mine", records, "--corpus", corpus, "-k", 2, *with_model),
        ("score", records, *with_model),
        ("data", "convert", records, "--to", "e5"),
    ]
    for command in commands:
        out.write_text("mine\n")
        assert "is there already" in run(*command, "-o", out).one_line()
        assert out.read_text() == "mine\n"
    out.unlink()
    for _ in range(2):  # its own output is
        assert run(*commands[0], "-o", out).code == 0


def test_an_unfinished_job_is_not_gone_on_with_by_other_options(run, files, with_model, tmp_path):
    records, corpus = files
    out, options = tmp_path / "out.jsonl", ("--corpus", corpus, *with_model, "--block", 2)
    moment = (f"{out}.part/blocks/*.jsonl", 2, 0)
    assert run("mine", records, "-o", out, *options, "-k", 4, kill_at=moment).code == -9
    told = run("mine", records, "-o", out, *options, "-k", 5).one_line()
    assert "k was 4, is 5" in told
    assert "--restart" in told
    assert run("mine", records, "-o", out, *options, "-k", 5, "--restart").code == 0
    assert len(lines(out)) == len(lines(records))


@pytest.mark.parametrize("form", ["records", "sentence-transformers", "flagembedding", "tevatron"])
def test_every_form_says_the_same(run, files, with_model, tmp_path, form):
    records, corpus = files
    options = ("--corpus", corpus, *with_model, "-k", 3)
    own, out = tmp_path / "own.jsonl", tmp_path / "out.jsonl"
    assert run("mine", records, "-o", own, *options).code == 0
    done = run("mine", records, "-o", out, *options, "--form", form, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads((tmp_path / "out.jsonl.report.json").read_text())
    assert report["written"] == len(lines(records))
    rows = lines(out)
    expected = [
        (one["query"], positive, negative)
        for one in lines(own)
        for positive in one["positives"]
        for negative in one["negatives"]
    ]
    triplets = {
        "records": lambda r: [(r["query"], p, n) for p in r["positives"] for n in r["negatives"]],
        "sentence-transformers": lambda r: [(r["anchor"], r["positive"], r["negative"])],
        "flagembedding": lambda r: [(r["query"], p, n) for p in r["pos"] for n in r["neg"]],
        "tevatron": lambda r: [
            (r["query"], p["text"], n["text"])
            for p in r["positive_passages"]
            for n in r["negative_passages"]
        ],
    }[form]
    assert [one for row in rows for one in triplets(row)] == expected
    if form != "sentence-transformers":  # each is read again
        again = run("mine", out, "--corpus", corpus, "-m", "bm25", "-o", tmp_path / "again.jsonl")
        assert again.code == 0, again.err


GOOD = '{"query": "a river", "positives": ["water flows"]}\n'
PASSAGES = '{"id": "1", "text": "a river flows"}\n{"id": "2", "text": "a river stands"}\n'


@pytest.mark.parametrize(
    ("records", "corpus", "told"),
    [
        ("", PASSAGES, "holds no record"),
        (GOOD, "", "holds no passage"),
        ("\x00\x01\xff", PASSAGES, "records.jsonl:1: not valid"),
        ('{"query": "a"}\n', PASSAGES, "records.jsonl:1: has no positive"),
        ('{"query": "a", "positives": []}\n', PASSAGES, "give at least one positive"),
        ('{"positives": ["b"]}\n', PASSAGES, "expected are query and positives"),
        ('["a"]\n', PASSAGES, "records.jsonl:1: a JSON list"),
        (GOOD, '{"id": "1", "text": 5}\n', "corpus.jsonl:1: the field 'text' is int"),
        (GOOD, '{"id": "1", "txt": "a"}\n', "Did you mean 'txt'"),
        (GOOD, PASSAGES.replace('"2"', '"1"'), "corpus.jsonl:2: the id '1' stands there before"),
        (GOOD, '{"id": "1", "text": " "}\n', "holds no text"),
        (
            '{"query": "a", "positives": ["b"], "positive_ids": ["1", "2"]}\n',
            PASSAGES,
            "one id for each of 1",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(run, tmp_path, records, corpus, told):
    (tmp_path / "records.jsonl").write_bytes(records.encode("latin-1"))
    (tmp_path / "corpus.jsonl").write_text(corpus)
    out = tmp_path / "out.jsonl"
    found = run(
        "mine", tmp_path / "records.jsonl", "--corpus", tmp_path / "corpus.jsonl", "-o", out,
        "-m", "bm25",
    )  # fmt: skip
    assert told in found.one_line()
    left = {path.name for path in tmp_path.iterdir()} - {".command"}
    assert left == {"records.jsonl", "corpus.jsonl"}


def test_bad_records_are_set_aside_where_a_file_is_named(run, tmp_path):
    (tmp_path / "records.jsonl").write_text(GOOD + '{"query": "a"}\n{bad\n' + GOOD)
    (tmp_path / "corpus.jsonl").write_text(PASSAGES + '{"id": "2", "text": "another"}\n')
    out, aside = tmp_path / "out.jsonl", tmp_path / "aside.jsonl"
    done = run(
        "mine", tmp_path / "records.jsonl", "--corpus", tmp_path / "corpus.jsonl", "-o", out,
        "-m", "bm25", "--rejects", aside, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out)["unreadable"] == len(lines(aside)) == 3
    assert [one["line"] for one in lines(aside)] == [2, 3, 3]
    assert len(lines(out)) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--window", "5"), "first and the last rank"),
        (("--window", "9-3"), "first and the last rank"),
        (("--sample", "2"), "sample is 2 and k is 5"),
        (("--rerank", "5"), "needs a re-ranker"),
        (("--filter", "veto=0"), "needs a re-ranker"),
        (("--filter", "margin=1"), "Did you mean 'margin_pos'"),
        (("--form", "beir"), "the form 'beir' is not known"),
        (("--instruction", "x"), "bm25 reads none"),
        (("--miner", "bm25"), "given twice"),
        (("-k", "0"), "above 0"),
        (("--rejects", "out.jsonl"), "the output and the rejects file"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    run, files, tmp_path, monkeypatch, options, told
):
    records, corpus = files
    options = [tmp_path / one if one == "out.jsonl" else one for one in options]
    found = run(
        "mine", records, "--corpus", corpus, "-m", "bm25", "-o", tmp_path / "out.jsonl", *options
    )
    assert told in found.one_line()


def test_a_corpus_smaller_than_k_gives_what_there_is(run, tmp_path):
    (tmp_path / "records.jsonl").write_text(GOOD)
    (tmp_path / "corpus.txt").write_text("a river flows\na river stands\n")
    out = tmp_path / "out.jsonl"
    done = run(
        "mine", tmp_path / "records.jsonl", "--corpus", tmp_path / "corpus.txt", "-o", out,
        "-m", "bm25", "-k", 9,
    )  # fmt: skip
    assert done.code == 0
    assert "records with fewer than 9 negatives: 1 (7 missing)" in done.err
    assert len(lines(out)[0]["negatives"]) == 2


def test_a_judged_job_killed_among_its_requests_gives_the_same_bytes(
    run, files, tmp_path, monkeypatch
):
    pytest.importorskip("openai")
    records, corpus = files
    with JudgeServer(delay=0.005) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        options = (
            *("--corpus", corpus, "-m", "bm25", "-k", 3, "--block", 2),
            *("--llm", f"{server.url}#{tmp_path.name}"),
        )
        whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
        assert run("mine", records, "-o", whole, *options).code == 0
        for count in (1, 4):
            moment = (f"{killed}.part/blocks/*.jsonl", count, 0.01)
            assert run("mine", records, "-o", killed, *options, kill_at=moment).code in (-9, 0)
        assert run("mine", records, "-o", killed, *options).code == 0
        server.shutdown()
    assert killed.read_bytes() == whole.read_bytes()
