"""Pipelines against a real server: well served, badly served, killed, and given bad input."""

import json
import random
import time

import pytest

import embedlm
from embedlm.data import read_records
from embedlm.errors import GenerationError, InputError, RecipeError, RecordError
from embedlm.generation import EndpointGenerator
from embedlm.search import read_documents
from embedlm.synthesis import Pipeline, pipelines
from tests.chat_server import serving
from tests.synthesis.writer_server import WriterServer

pytest.importorskip("datasketch")
pytest.importorskip("py3langid")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def inpars(server, rows, **options):
    writer = EndpointGenerator(server.url, "writer", wait=0.01, **options.pop("endpoint", {}))
    return embedlm.synthesize("inpars", rows, llm=writer, **options)


def asides(made):
    return {
        f"{step['step']}: {reason}": found["count"]
        for step in made.report["steps"]
        for reason, found in step["set_aside"].items()
    }


# -- the two first pipelines ----------------------------------------------------------------------


def test_inpars_writes_a_question_a_passage_and_keeps_the_likeliest(serve, passages):
    server = serve()
    made = inpars(server, passages, changes={"steps.filter.keep": 7})
    assert len(made.records) == 7
    texts = {row["id"]: row["text"] for row in passages}
    for row in made.records:
        assert row["positives"] == [texts[row["id"]]]
        assert row["positive_ids"] == [row["id"]]
        assert row["query"].startswith("what about ")
        assert row["provenance"]["record"]["pipeline"] == "inpars"
    likely = {body["seed"]: -0.01 * (body["seed"] % 100) for body in server.requests}
    asked = [body for body in server.requests if body.get("logprobs")]
    assert len(asked) == len(passages)
    assert asked[0]["temperature"] == 0
    best = sorted(likely.values(), reverse=True)[:12]
    seeds = {body["messages"][0]["content"]: body["seed"] for body in asked}
    kept = [
        likely[seed]
        for prompt, seed in seeds.items()
        if any(f"Passage: {row['positives'][0]}\n" in prompt for row in made.records)
    ]
    assert min(kept) >= best[-1]


def test_e5_brainstorms_tasks_and_makes_triples(serve):
    made = embedlm.synthesize("e5-short-long", llm=f"{serve().url}#w", count=4)
    tasks = {row["instruction"] for row in made.records}
    assert len(tasks) == 8
    assert {row["task"] for row in made.records} == {"short-long"}
    for row in made.records:
        assert row["negatives"][0].startswith("Another text")
    assert made.report["usage"]["answers"] == made.spent["requests"]
    assert made.report["usage"]["prompt_tokens"] == 10 * made.spent["requests"]


def test_records_can_be_trained_on(serve, passage_file, tmp_path):
    out = tmp_path / "out.jsonl"
    inpars(serve(), passage_file, output=out)
    groups = read_records(out)
    assert groups.kind == "groups"
    assert len(groups.items) == len(lines(out))


def test_seeds_count_and_languages(serve, passages):
    server = serve()
    few = inpars(server, passages, count=5, seed=3)
    again = inpars(server, passages, count=5, seed=3)
    other = inpars(server, passages, count=5, seed=4)
    assert few.records == again.records
    assert again.spent["requests"] == 0
    assert again.spent["cached"] == 5
    assert {row["id"] for row in few.records} != {row["id"] for row in other.records}
    made = embedlm.synthesize(
        "e5-short-long", llm=f"{server.url}#w", count=2, languages=["German", "French"]
    )
    asked = [body["messages"][0]["content"] for body in server.requests]
    assert any("in German" in prompt or "in French" in prompt for prompt in asked)
    assert made.records == []  # the server writes English
    reasons = " ".join(asides(made))
    assert "the language is en" in reasons


def test_prices_and_totals(serve, passages):
    made = inpars(serve(), passages, count=10, prices=(1e5, 2e5))
    assert made.spent["prompt_tokens"] == 100
    assert made.spent["new_tokens"] == 50
    assert made.spent["cost"] == pytest.approx(100 * 0.1 + 50 * 0.2)


# -- a server that answers badly ------------------------------------------------------------------


def test_what_is_no_use_is_set_aside_with_its_reason(serve, passages, tmp_path):
    out = tmp_path / "out.jsonl"
    rows = [row for row in passages if len(row["text"].split()) > 5]
    moods = {f"Passage: {rows[0]['text']}\n": "refuses", f"Passage: {rows[1]['text']}\n": "copy"}
    made = inpars(serve(moods=moods), rows, output=out)
    found = asides(made)
    assert found["check: query: a refusal"] == 1
    assert found["check: query: a copy of passage"] == 1
    aside = lines(tmp_path / "out.jsonl.rejects.jsonl")
    assert len(aside) == len(rows) - made.report["written"]
    assert all(set(row) == {"file", "line", "error", "record"} for row in aside)


def test_passages_without_text_are_set_aside_and_the_others_served(serve, passages, tmp_path):
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "out.jsonl"
    rows = [*passages[:3], {"id": "none", "text": " "}, *passages[3:6]]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = inpars(serve(), corpus, output=out)
    assert {row["id"] for row in lines(out)} == {row["id"] for row in passages[:6]}
    assert made.report["unreadable"] == 1
    aside = lines(tmp_path / "out.jsonl.rejects.jsonl")
    assert (aside[0]["file"], aside[0]["line"]) == (str(corpus), 4)
    assert "the field 'text' holds no text" in aside[0]["error"]
    corpus.write_text('{"id": "a", "words": "a passage under another name"}\n')
    with pytest.raises(RecordError, match=r"the field 'text' holds no text"):
        inpars(serve(), corpus, output=tmp_path / "other.jsonl")


def answer_of_an_example(chat, sampling, seed):
    return (
        "Do swifts sleep, while flying?" if "Passage: oil" in chat[0]["content"] else "what boils"
    )


def test_an_answer_that_is_an_examples_is_set_aside():
    steps = [
        {
            "kind": "generate",
            "prompt": "{examples}Passage: {passage}",
            "example": "{text}: {question}",
            "examples": [{"text": "a swift", "question": "do swifts sleep while flying"}],
            "into": "query",
        },
        {"kind": "write"},
    ]
    made = embedlm.synthesize(
        {"steps": steps}, ["oil floats", "water boils"], llm=answer_of_an_example
    )
    assert [row["query"] for row in made.records] == ["what boils"]
    found = made.report["steps"][0]["set_aside"]["unreadable"]
    assert found["examples"][0]["reason"].endswith("the answer is that of an example")


SAID = {
    "first": "Here is a question:\n1. what floats on the water",
    "second": 'Question: "what boils when it is heated"',
    "third": "<think>They want a question: one.</think>\n\nwhat freezes in the cold\nNo more.",
    "fourth": "They want a question.\n</think>\n\nwhat melts in the sun",
    "fifth": "<think>They want",
    "sixth": "Hier ist eine Frage:",
    "seventh": "<think>\n\n</think>\n\nwhat glows at night\nAsk me more.",
    "eighth": "Sure! what rings at noon",
}


class Chatty(WriterServer):
    """Says what chat models say around a question; a stop ends it, as a server does."""

    def say(self, body):
        prompt, stop = body["messages"][0]["content"], body.get("stop")
        said = next(said for name, said in SAID.items() if name in prompt)
        return said.split(stop)[0] if stop else said


def test_what_is_said_around_a_question_is_no_part_of_it():
    prompt = "Write a question.\n\nPassage: {passage}\nQuestion:"
    step = {"kind": "generate", "prompt": prompt, "into": "query", "stop": "\n", "name": "q"}
    with serving(Chatty) as start:
        llm = f"{start().url}#w"
        made = [
            embedlm.synthesize({"steps": [one, {"kind": "write"}]}, list(rows), llm=llm)
            for one, rows in ((step, SAID.keys() - {"fourth"}), ({**step, "stop": None}, SAID))
        ]
    found = {row["positives"][0]: row["query"] for row in made[0].records}
    assert found == {
        "first": "what floats on the water",
        "second": "what boils when it is heated",
        "third": "what freezes in the cold",
        "eighth": "what rings at noon",
        "seventh": "what glows at night",
    }
    assert asides(made[0]) == {"q: refused": 1, "q: unreadable": 1}
    texts = {row["positives"][0]: row["query"] for row in made[1].records}
    assert texts["third"] == "what freezes in the cold\nNo more."
    assert texts["fourth"] == "what melts in the sun"
    assert "fifth" not in texts


@pytest.mark.parametrize(
    "said",
    [
        'I fill in {query}, then:\n```json\n{"query": "what floats"}\n```',
        '<think>{"query": "of one word"}</think>{"query": "what floats"}',
        'The schema is {"type": "object"}. {"query": "what floats"}',
    ],
)
def test_the_object_that_was_asked_for_is_found(said):
    step = {"kind": "generate", "prompt": "{passage}", "fields": {"query": {}}}

    class Says(WriterServer):
        def say(self, body):
            return said

    with serving(Says) as start:
        made = embedlm.synthesize(
            {"steps": [step, {"kind": "write"}]}, ["oil"], llm=f"{start().url}#w"
        )
    assert [row["query"] for row in made.records] == ["what floats"]
    assert made.report["usage"]["answers"] == 1


def in_chinese(chat, sampling, seed):
    return "植物制造食物" if "copy" in chat[0]["content"] else "绿叶怎样得到能量？"


def test_words_are_counted_and_copies_found_where_no_blanks_are_written():
    steps = [
        {"kind": "generate", "prompt": "{passage}", "into": "query"},
        {"kind": "check", "fields": ["query"], "words": [3, 20], "copies_of": ["passage"]},
        {"kind": "write"},
    ]
    rows = ["植物用光来制造食物和氧气。", "copy 植物制造食物，银行提高利率。"]
    made = embedlm.synthesize({"steps": steps}, rows, llm=in_chinese)
    assert [row["query"] for row in made.records] == ["绿叶怎样得到能量？"]
    assert asides(made) == {"check: query: a copy of passage": 1}


def named_after(chat, sampling, seed):
    return f"what is told of {chat[-1]['content']}?"


def test_a_folder_gives_the_documents_of_an_index(tmp_path):
    page = "<h1>Oil</h1><p>Oil floats.</p><p>Water does not.</p>"
    (tmp_path / "page.html").write_text(f"<html><body>{page}</body></html>")
    (tmp_path / "r.jsonl").write_text('{"id": "p7", "title": "Tin", "text": "It is soft."}\n')
    steps = [{"kind": "generate", "prompt": "{passage}", "into": "query"}, {"kind": "write"}]
    made = embedlm.synthesize({"steps": steps}, tmp_path, llm=named_after)
    ids = [row["positive_ids"][0] for row in made.records]
    assert ids == [str(one.id) for one in read_documents(tmp_path)]
    assert ids[-1] == "p7"
    assert made.records[-1]["positives"] == ["Tin It is soft."]


def leak(chat, sampling, seed):
    return "what about plants make food in the morning"


def test_what_held_out_texts_hold_is_set_aside(tmp_path):
    held_out = tmp_path / "test.jsonl"
    held_out.write_text('{"query": "What about plants, make food in the morning?"}\n')
    steps = [
        {"kind": "generate", "prompt": "{passage}", "into": "query"},
        {"kind": "check", "fields": ["query"]},
        {"kind": "write"},
    ]
    rows = [{"id": "a", "text": "Plants make food."}]
    made = embedlm.synthesize({"steps": steps}, rows, llm=leak, held_out=[held_out])
    assert "check: query: a leak" in " ".join(asides(made))
    assert len(embedlm.synthesize({"steps": steps}, rows, llm=leak).records) == 1


@pytest.mark.parametrize(
    ("mood", "kept", "reason"),
    [
        ("prose once", True, ""),
        ("prose", False, "unreadable"),
        ("cut once", False, ""),
        ("cut", False, "cut off after N tokens"),
        ("echo", False, "unreadable"),
        ("refuses", False, "unreadable"),
    ],
)
def test_answers_of_another_form_are_mended_once(serve, mood, kept, reason):
    server = serve(moods={"Here is a retrieval task": mood})
    changes = {"steps.example.max_new_tokens": 512}
    made = embedlm.synthesize("e5-short-long", llm=f"{server.url}#w", count=1, changes=changes)
    usage = made.report["usage"]
    if mood == "cut once":
        assert usage["cut_off"] > 0
        assert {body["max_tokens"] for body in server.requests} >= {512, 1024}
        assert made.records
        return
    assert bool(made.records) == kept
    if not kept:
        assert f"example: {reason}" in asides(made)
    if "prose" in mood:
        assert usage["repairs"] == 2
        repair = [b["messages"] for b in server.requests if len(b["messages"]) == 3]
        assert "JSON Schema" in repair[0][2]["content"]


@pytest.mark.parametrize("trouble", [429, 500, "malformed", "empty"])
def test_passing_trouble_costs_nothing(serve, passages, trouble):
    server = serve([200, trouble, trouble, 200, trouble])
    made = inpars(server, passages[:8], endpoint={"concurrency": 2})
    assert made.report["steps"][0]["kept"] == 8
    assert len(server.requests) == 11


def test_a_chat_that_only_fails_is_set_aside_and_the_others_go_on(serve, passages):
    server = serve(fails=f"Passage: {passages[3]['text']}\n")
    made = inpars(server, passages[:10], endpoint={"concurrency": 2, "retries": 2})
    assert made.report["steps"][0]["kept"] == 9
    assert asides(made)["query: refused"] == 1


def test_a_server_that_is_down_is_told_and_the_job_goes_on(serve, passages, tmp_path):
    server = serve([200] * 6 + [503] * 100)
    out = tmp_path / "out.jsonl"
    endpoint = {"concurrency": 1, "retries": 1, "patience": 0.5}
    with pytest.raises(GenerationError, match="is in the cache"):
        inpars(server, passages, output=out, block=2, endpoint=endpoint)
    assert not out.exists()
    server.script.clear()
    before = len(server.requests)
    made = inpars(server, passages, output=out, block=2, endpoint=endpoint)
    assert len(server.requests) - before == len(passages) - 6
    assert made.report["steps"][0]["kept"] == len(passages)


def test_a_server_that_asks_for_a_longer_wait_than_patience_is_given_up(serve, passages):
    server = serve([200] + [429] * 100)
    server.retry_after = "3600"
    start = time.monotonic()
    with pytest.raises(GenerationError, match="is in the cache"):
        inpars(server, passages, endpoint={"concurrency": 2, "retries": 0, "patience": 0.5})
    assert time.monotonic() - start < 30  # a pause has 60 s at most


def test_what_was_answered_is_checked_while_the_model_answers(serve, passages, tmp_path):
    server, out = serve([200] * 9 + [503] * 100), tmp_path / "out.jsonl"
    endpoint = {"concurrency": 1, "retries": 0, "patience": 0.1}
    with pytest.raises(GenerationError, match="is in the cache"):
        embedlm.synthesize(
            "questions",
            passages,
            llm=EndpointGenerator(server.url, "w", wait=0.01, **endpoint),
            output=out,
            block=2,
        )
    stages = [path.stem[:2] for path in sorted((tmp_path / "out.jsonl.part/blocks").iterdir())]
    assert stages == ["00"] * 4 + ["01"] * 4  # queries, and what was checked of them


def test_a_server_that_never_was_there_is_told_soon(passages):
    writer = EndpointGenerator("http://127.0.0.1:9/v1", "w", retries=1, wait=0.01)
    with pytest.raises(GenerationError, match="after 2 attempts"):
        embedlm.synthesize("inpars", passages, llm=writer)


def test_a_server_that_is_busy_for_long_is_waited_for(serve, passages):
    server = serve([429] * 12)
    made = inpars(server, passages[:4], endpoint={"concurrency": 4, "retries": 1})
    assert made.report["steps"][0]["kept"] == 4


def test_requests_are_limited_and_in_flight(serve, passages):
    server = serve(delay=0.05)
    made = inpars(server, passages, endpoint={"concurrency": 5})
    assert server.most_at_once == 5
    assert made.report["steps"][0]["kept"] == len(passages)
    start = time.monotonic()
    inpars(serve(), passages[:10], endpoint={"per_minute": 1200})
    assert time.monotonic() - start > 9 * 0.05


# -- jobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inpars", "e5-short-long"])
def test_a_job_killed_at_random_moments_gives_the_same_files(
    serve, run, passage_file, tmp_path, name
):
    server = serve(delay=0.003)
    rows = [passage_file] if name == "inpars" else []
    words = ["synthesize", name, *rows, "--llm", f"{server.url}#w", "--block", 3]
    words += ["--count", 20] if name == "inpars" else ["--count", 8]
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    done = run(*words, "-o", whole, "--cache", tmp_path / "one.sqlite")
    assert done.code == 0, done.err
    rng, codes = random.Random(1), []
    for count in (1, 4, 8):
        moment = (f"{killed}.part/blocks/*.jsonl", count, rng.uniform(0, 0.02))
        found = run(*words, "-o", killed, "--cache", tmp_path / "two.sqlite", kill_at=moment)
        codes.append(found.code)
        assert found.code in (0, -9), found.err
    assert -9 in codes
    assert run(*words, "-o", killed, "--cache", tmp_path / "two.sqlite").code == 0
    for end in ("", ".rejects.jsonl"):
        files = [tmp_path / f"{one}.jsonl{end}" for one in ("whole", "killed")]
        assert files[0].exists() == files[1].exists()
        if files[0].exists():
            assert files[0].read_bytes() == files[1].read_bytes()
    reports = [
        json.loads((tmp_path / f"{one}.jsonl.report.json").read_text())
        for one in ("whole", "killed")
    ]
    for report in reports:
        report["output"] = ""
        report["rejects"] = bool(report["rejects"])
    assert reports[0] == reports[1]
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob("*.work"))


def test_a_job_is_not_gone_on_with_after_its_corpus_changed(serve, run, passage_file, tmp_path):
    server, out = serve(delay=0.003), tmp_path / "out.jsonl"
    words = ["synthesize", "inpars", passage_file, "--llm", f"{server.url}#w", "--block", 2]
    words += ["-o", out, "--cache", tmp_path / "one.sqlite"]
    assert run(*words, kill_at=(f"{out}.part/blocks/*.jsonl", 2, 0)).code == -9
    text = passage_file.read_text()
    passage_file.write_text(text.replace("p7", "p007"))
    assert "input was" in run(*words).one_line()
    passage_file.write_text(text)
    assert "seed was 0, is 1" in run(*words, "--seed", 1).one_line()
    assert run(*words).code == 0
    assert lines(out)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inparz"], "Did you mean 'inpars'"),
        (["inpars", "--llm", "URL"], "reads passages"),
        (["inpars", "FILE"], "name one (--llm, llm=)"),
        (["e5-short-long", "FILE", "--llm", "URL"], "reads no input"),
        (["inpars", "FILE", "--llm", "URL", "--language", "German"], "draws no language"),
        (["e5-short-long", "--llm", "URL", "--language", "Elvish"], "'Elvish' is not known"),
        (["inpars", "FILE", "--llm", "URL", "--corpus", "FILE"], "searches nothing"),
        (["inpars", "FILE", "--llm", "URL", "-m", "bm25"], "uses no model"),
        (["inpars", "FILE", "--llm", "URL", "--reranker", "x"], "uses no reranker"),
        (["inpars", "FILE", "--llm", "URL", "--set", "steps.query.tempo=1"], "unknown field"),
        (["inpars", "FILE", "--llm", "URL", "--set", "steps.query.prompt='{foo}'"], "{foo} is no"),
        (["inpars", "FILE", "--llm", "URL", "--price", "1"], "write two numbers"),
        (["inpars", "FILE", "--llm", "http://x/v1"], "names no model"),
        (["inpars", "EMPTY", "--llm", "URL"], "holds no passage"),
        (["inpars", "BINARY", "--llm", "URL"], "binary.jsonl:1"),
    ],
)
def test_bad_input_is_told_in_one_line(run, passage_file, tmp_path, words, told):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(b"\x00\xff\x80\n")
    names = {"FILE": passage_file, "URL": "http://127.0.0.1:9/v1#w"}
    names |= {"EMPTY": tmp_path / "empty.jsonl", "BINARY": tmp_path / "binary.jsonl"}
    arguments = [names.get(word, word) for word in words]
    assert told in run("synthesize", *arguments, "-o", tmp_path / "out.jsonl").one_line()


def test_pipelines_are_listed_and_shown(run, tmp_path):
    found = run("synthesize")
    assert all(name in found.out for name in pipelines())
    shown = run("synthesize", "inpars", "--show").out
    own = tmp_path / "own.yaml"
    own.write_text(shown)
    assert Pipeline.load(own).steps == Pipeline.load("inpars").steps
    assert "no output was named" in run("synthesize", "inpars").one_line()


def test_a_pipeline_must_end_with_write_and_know_its_fields():
    steps = [{"kind": "generate", "prompt": "about {passage}"}]
    with pytest.raises(RecipeError, match="must be of the kind write"):
        Pipeline.load({"steps": steps})
    with pytest.raises(RecipeError, match=r"\{query\} is no field there"):
        Pipeline.load({"steps": [*steps, {"kind": "write"}]})


def write(chat, sampling, seed):
    return "what is this about"


def test_likelihoods_that_a_writer_does_not_give_are_told(passages):
    made = embedlm.synthesize("inpars", passages[:2], llm=write)
    assert made.records == []
    assert "no log-probabilities" in json.dumps(made.report)


def test_a_count_of_nothing_is_refused():
    with pytest.raises(InputError, match="count is 0"):
        embedlm.synthesize("e5-short-long", llm="http://127.0.0.1:9/v1#w", count=0)
