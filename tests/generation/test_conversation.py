"""Conversations behind a real endpoint: order, slots that stay full, and what is kept."""

import threading
import time
from contextlib import closing

import pytest

from embedlm.errors import GenerationError
from embedlm.generation import Cache, EndpointGenerator, Question, Sampling, Spent, converse
from embedlm.generation.conversation import _Kept
from tests.chat_server import serving

pytest.importorskip("openai")


def asking(number, *, times=1):
    """Ask so often, and return what was answered."""
    answers = []
    for i in range(times):
        chat = [{"role": "user", "content": f"Input: {number} {i}"}]
        answer = yield Question(chat, seed=number)
        answers.append(answer.text)
    return number, answers


@pytest.fixture
def store(tmp_path):
    with closing(Cache(tmp_path / "cache.sqlite")) as opened:
        yield opened


def test_a_slow_answer_leaves_no_slot_empty(store):
    with serving() as start:
        server = start()
        server.step = lambda body: "late" if "Input: 0 0" in str(body["messages"]) else "good"
        writer = EndpointGenerator(server.url, "m", concurrency=2)
        with closing(converse(writer, map(asking, range(40)), store, Spent())) as results:
            first = next(results)
            assert len(server.requests) > 10  # the other slot went on meanwhile
            assert [number for number, _ in (first, *results)] == list(range(40))
        assert server.most_at_once == 2


def test_answers_are_kept_while_others_are_waited_for(store, tmp_path):
    with serving() as start:
        server = start(delay=0.4)
        writer, spent = EndpointGenerator(server.url, "m", concurrency=1), Spent()
        conversations = (asking(number, times=4) for number in range(1))
        begun = threading.Thread(
            target=lambda: list(converse(writer, conversations, store, spent)), daemon=True
        )
        begun.start()
        with closing(Cache(tmp_path / "cache.sqlite")) as other:
            kept = _Kept(writer.name, other, Spent())
            key = kept.key(next(asking(0)))
            deadline = time.monotonic() + 10
            while kept.get(key) is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert begun.is_alive()
            assert kept.get(key).text == 'Output: "0 0 0"'
            kept.close()
        begun.join()
        assert spent.requests == 4


def test_the_key_of_a_question_stays_what_it_was(store):
    """Answers that earlier versions have kept are found: it is part of the cache's form."""
    chat = [{"role": "user", "content": "x"}]
    sampling = Sampling(0.0, 0.5, 7)
    question = Question(chat, sampling, 3, "\n", True, ("a", "b"), "cont", True)
    kept = _Kept("n", store, Spent())
    digest = "02794ada32b1d1f2f1898a315d6cdbc83283c06459245983cb89c0de76e2e45f"
    assert kept.key(question) == digest
    kept.close()


class Full(Cache):
    def put(self, entries):
        raise GenerationError("no space left; EMBEDLM_CACHE names another place")


def test_answers_that_cannot_be_kept_stop_the_job(tmp_path):
    with serving() as start, closing(Full(tmp_path / "cache.sqlite")) as store:
        server = start(delay=0.02)
        writer = EndpointGenerator(server.url, "m", concurrency=2)
        with pytest.raises(GenerationError, match="EMBEDLM_CACHE"):
            list(converse(writer, map(asking, range(400)), store, Spent()))
        assert len(server.requests) < 200
