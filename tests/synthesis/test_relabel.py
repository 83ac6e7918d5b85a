"""FRet, filters by a search, LARMOR: on collections whose truth is known."""

import json
import math
import random

import numpy as np
import pytest
import torch

import embedlm
from embedlm.evaluation.metrics import ndcg
from embedlm.generation import Answer, Question
from embedlm.generation.likelihood import scored
from embedlm.generation.local import LocalGenerator
from embedlm.synthesis import larmor
from embedlm.synthesis.larmor import heap_sorted, rank_biased_overlap
from embedlm.synthesis.relabel import graded
from tests.synthesis.writer_server import WriterServer

pytest.importorskip("datasketch")
pytest.importorskip("bm25s")

BEST, SEED = "[best]", "[seed]"
TOPICS = ("swifts", "concrete", "tides", "violins", "glaciers", "bees")


def planted():
    """For each topic a seed passage, a better one, and some that share words."""
    rows = []
    for i, topic in enumerate(TOPICS):
        rows.append({"id": f"s{i}", "text": f"{SEED} {topic} have been known for long."})
        rows.append({"id": f"b{i}", "text": f"{BEST} {topic} have been measured and explained."})
        rows += [{"id": f"o{i}.{j}", "text": f"{topic} stood in paper {j}."} for j in range(3)]
    return rows


class Judge(WriterServer):
    """Writes queries of a topic; scores the planted passages higher by either ranker."""

    likes = (BEST, SEED)

    def step(self, body):
        return 200

    def say(self, body):
        if "prompt" in body:
            return ""
        prompt = body["messages"][-1]["content"]
        if "JSON Schema" in prompt:
            passage = prompt.partition("\n\nAnswer with one JSON")[0].rpartition("Passage: ")[2]
            topic = next(t for t in TOPICS if t in passage)
            return json.dumps({"task": "find facts", "query": f"what of {topic} then"})
        return "1"

    def more(self, body, answer):
        if "prompt" in body:
            answer["choices"] = [{"index": 0, "finish_reason": "length", "text": body["prompt"]}]
            answer["choices"][0]["logprobs"] = self.echoed(body["prompt"])
            return
        prompt = body["messages"][-1]["content"]
        if body.get("top_logprobs"):
            grade = 3 if self.likes[0] in prompt else 1 if self.likes[1] in prompt else 0
            tops = [{"token": str(g), "logprob": -0.1 - abs(g - grade)} for g in range(4)]
            content = [{"token": "1", "logprob": -0.1, "top_logprobs": tops}]
            answer["choices"][0]["logprobs"] = {"content": content}

    def echoed(self, prompt):
        size = -1.0 if self.likes[0] in prompt else -2.0 if self.likes[1] in prompt else -5.0
        starts = [i for i in range(len(prompt)) if i == 0 or prompt[i - 1] == " "]
        return {
            "tokens": ["x"] * len(starts),
            "token_logprobs": [None, *[size] * (len(starts) - 1)],
            "text_offset": starts,
            "top_logprobs": None,
        }


@pytest.fixture
def judge(serve):
    server = serve()
    server.__class__ = Judge
    return server


def fret(server, rows, **changes):
    return embedlm.synthesize(
        "fret",
        [row for row in rows if row["id"].startswith("s")],
        corpus=rows,
        model="bm25",
        llm=f"{server.url}#judge",
        changes={"steps.relabel.candidates": 6, **changes},
    )


def test_a_planted_better_passage_becomes_the_positive(judge):
    made = fret(judge, planted())
    assert len(made.records) == len(TOPICS)
    for row in made.records:
        assert row["positives"][0].startswith(BEST)
        assert row["positive_ids"] == [f"b{row['id'][1:]}"]
        assert row["seed_rank"] == "2"
        assert row["negatives"][0].startswith(row["query"].split()[2])
    assert made.report["usage"]["relabelled"] == len(TOPICS)


def test_the_seed_stays_the_positive_where_nothing_is_better(judge):
    judge.likes = (SEED, BEST)
    made = fret(judge, planted())
    assert all(row["positives"][0].startswith(SEED) for row in made.records)
    assert made.report["usage"]["relabelled"] == 0


def test_one_ranker_alone_and_a_drawn_negative(judge):
    made = fret(
        judge,
        planted(),
        **{"steps.relabel.rankers": ["relevance"], "steps.relabel.negative": "sample"},
    )
    assert all(row["positives"][0].startswith(BEST) for row in made.records)
    assert not any("prompt" in body for body in judge.requests)
    negatives = {row["negatives"][0].split()[0] for row in made.records}
    assert len(negatives) > 1


def test_the_grade_is_the_mean_of_labels_by_their_probability():
    assert graded([math.log(0.5), math.log(0.25), math.log(0.25)]) == pytest.approx(0.75)
    assert graded([-1000.0, -1001.0]) == pytest.approx(1 / (1 + math.e))


def test_a_local_model_scores_texts_and_labels_as_its_logits_say(tiny_llama):
    writer = LocalGenerator.load(str(tiny_llama))
    chats = [[{"role": "user", "content": text}] for text in ("a river", "plants make food now")]
    text = "green leaves"
    found = list(scored(writer, [Question(chat, continuation=text) for chat in chats]))
    labels = list(scored(writer, [Question(chat, labels=("a", "green leaves")) for chat in chats]))
    for chat, whole, one in zip(chats, found, labels, strict=True):
        row = writer.ids(chat)
        given = text if writer.templated else f" {text}"
        end = writer.tokenizer(given, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = writer.model(input_ids=torch.tensor([row + end])).logits[0].float()
        log_p = torch.log_softmax(logits, -1)
        wanted = sum(float(log_p[len(row) - 1 + i, token]) for i, token in enumerate(end))
        assert whole.scores[0] == pytest.approx(wanted, abs=1e-3)
        assert one.scores[1] == pytest.approx(wanted, abs=1e-3)


def test_a_round_trip_keeps_queries_whose_passage_comes_back_first():
    texts = [f"{TOPICS[i % 3]} item{i} note{i}" for i in range(12)]
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]

    def kept(rank):
        steps = [
            {"kind": "generate", "prompt": "Passage: {passage}", "into": "query"},
            {"kind": "filter", "by": "round_trip", "rank": rank},
            {"kind": "write"},
        ]
        made = embedlm.synthesize({"steps": steps}, rows, model="bm25", llm=half_right)
        return [row["id"] for row in made.records]

    assert kept(1) == [str(i) for i in range(0, 12, 2)]
    assert kept(len(rows)) == [str(i) for i in range(12)]


def half_right(chat, sampling, seed):
    """Ask for the passage of an even number; for an odd one, for the next passage."""
    topic, item, _ = chat[-1]["content"].removeprefix("Passage: ").split()
    number = int(item.removeprefix("item"))
    wanted = (number + number % 2) % 12
    return f"{topic} item{wanted} note{wanted} please"


# -- LARMOR ---------------------------------------------------------------------------------------


def test_rank_biased_overlap():
    a, b = list("abcdefghij"), list("klmnopqrst")
    assert rank_biased_overlap(a, a) == pytest.approx(1)
    assert rank_biased_overlap(a, b) == 0
    assert rank_biased_overlap(a, ["a", *b[1:]]) > rank_biased_overlap(a, [*b[:9], "a"])
    shares = [0.9**d for d in range(10)]
    wanted = sum(s / d for s, d in zip(shares, range(1, 11), strict=True)) / sum(shares)
    assert rank_biased_overlap(a, ["a", *b[1:]]) == pytest.approx(wanted)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 17])
def test_heap_sort_by_a_model_that_knows_gives_the_order(count):
    rng = random.Random(count)
    values = rng.sample(range(100), count)
    sorting, order = heap_sorted("q", [f"value {v}." for v in values]), None
    answer = None
    while order is None:
        try:
            question = sorting.send(answer)
        except StopIteration as end:
            order = end.value
            break
        shown = question.chat[0]["content"].split("\n\n")[1:-1]
        scores = tuple(float(part.split("value ")[1].rstrip(".\n")) for part in shown)
        answer = Answer("A", scores=scores)
    assert [values[i] for i in order] == sorted(values, reverse=True)


def knows(chat, sampling, seed):
    """Write the topic of a passage; judge by whether query and passage share it."""
    text = chat[-1]["content"]
    if "Write the question" in text:
        passage = text.rpartition("Passage: ")[2]
        topic = next(t for t in TOPICS if t in passage)
        return f"tell me of {topic} number {seed % 97} please"
    query, _, passage = text.partition("Passage: ")
    topic = next(t for t in TOPICS if t in query)
    return "Highly Relevant." if topic in passage else "not relevant"


def test_larmor_prefers_the_model_that_finds_what_is_relevant(tiny_llama, tmp_path):
    model = embedlm.load(tiny_llama, "plain-mean", device="cpu")
    writer = Knowing()
    found = larmor(
        [model, "bm25"], planted(), llm=writer, count=6, queries=2, output=tmp_path / "r.json"
    )
    assert found["ranking"][0]["model"] == "bm25"
    assert found["ranking"][0]["ndcg@10"] > found["ranking"][1]["ndcg@10"]
    assert found["unread"] == 0
    assert found["relevant"] > 0
    assert json.loads((tmp_path / "r.json").read_text()) == found
    assert ndcg(["a"], {"a": 1.0}) == 1.0


class Knowing:
    """A writer that judges by topics, and scores labels."""

    name = "knowing"

    def generate(self, chats, sampling, seeds):
        for chat, seed in zip(chats, seeds, strict=True):
            yield knows(chat, sampling, seed)

    def score(self, questions):
        for question in questions:
            text = question.chat[-1]["content"]
            if "How relevant" in text:
                highly = knows(question.chat, None, 0) == "Highly Relevant."
                yield (-1.0, -9.0, -0.1 if highly else -5.0)
                continue
            topic = next(t for t in TOPICS if t in text)
            parts = text.split("\n\n")[1:-1]
            yield tuple(float(np.log(0.1 + (topic in part))) for part in parts)
