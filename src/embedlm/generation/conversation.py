"""Conversations: each asks, looks at the answer, and may ask again before it has a result.

A conversation is a Python generator that yields a `Question`, is sent an `Answer`, and returns its
result. Many run at once: behind an endpoint as many as it takes requests at a time, each going on
as soon as it is answered; on this machine in waves, each of which is one batch.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Generator as Coroutine
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, TypeVar

from embedlm.errors import GenerationError
from embedlm.generation.cache import Cache
from embedlm.generation.endpoint import EndpointGenerator
from embedlm.generation.generator import Answer, Generator, Question, ended
from embedlm.generation.likelihood import scored

__all__ = ["Conversation", "Spent", "converse"]

Result = TypeVar("Result")
_WAVE = 64
"""Conversations that a model on this machine takes part in at once."""
_AHEAD = 32
"""Conversations taken before the first is over, as a multiple of the requests in flight: one that
takes so many times as long as the others, or is tried again after a pause, leaves no slot empty."""
_SAVED_AFTER = 0.5
"""Seconds of generation that a kill may cost."""


Conversation = Coroutine[Question, Answer, Result]


@dataclass(slots=True)
class Spent:
    """What was asked in this run, answers from the cache left out."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def add(self, answer: Answer) -> None:
        """Count an answer that was generated."""
        self.requests += 1
        self.prompt_tokens += answer.prompt_tokens
        self.new_tokens += answer.new_tokens


class _Kept:
    """Answers by question, on disk within half a second: a thread of its own saves them.

    A slot of an endpoint would stand empty while the thread that has it waits for the disk.
    """

    def __init__(self, name: str, cache: Cache, spent: Spent) -> None:
        self.name, self.cache, self.spent = name, cache, spent
        self._lock = threading.Lock()
        self._fresh: dict[str, str] = {}
        self._over = threading.Event()
        self._failure: GenerationError | None = None
        self._saver = threading.Thread(target=self._save_on, name="embedlm-answers", daemon=True)
        self._saver.start()

    def key(self, question: Question) -> str:
        """Return the key of a question: everything that decides its answer."""
        return hashlib.sha256(_json([self.name, question, "answer"]).encode()).hexdigest()

    def get(self, key: str) -> Answer | None:
        """Return the answer to a question, if it is there."""
        with self._lock:
            text = self._fresh.get(key)
        if text is None:
            text = self.cache.get([key]).get(key)
        if text is None:
            return None
        with self._lock:
            self.spent.cached += 1
        found = json.loads(text)
        scores = found.pop("scores")
        return Answer(**found, scores=None if scores is None else tuple(scores))

    def put(self, key: str, answer: Answer) -> None:
        """Take the answer to a question.

        Raises:
            GenerationError: those before could not be saved.
        """
        # A refusal may be of the moment: it is asked for again by the next run.
        text = None if answer.finish == "refused" else _json(answer)
        with self._lock:
            self.spent.add(answer)
            if text is not None:
                self._fresh[key] = text
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Save what is not yet saved."""
        self._over.set()
        self._saver.join()
        self._save()

    def _save_on(self) -> None:
        try:
            while not self._over.wait(_SAVED_AFTER):
                self._save()
        except GenerationError as error:
            self._failure = error

    def _save(self) -> None:
        with self._lock:
            fresh = dict(self._fresh)
        if fresh:
            self.cache.put(fresh.items())
            with self._lock:
                for key, text in fresh.items():
                    if self._fresh.get(key) is text:
                        del self._fresh[key]


def _json(value: Any) -> str:
    """Return JSON in which a dataclass is an object; `asdict` would copy all that it holds."""
    return json.dumps(
        value, default=lambda one: {f.name: getattr(one, f.name) for f in fields(one)}
    )


def converse(
    writer: Generator,
    conversations: Iterable[Conversation[Result]],
    cache: Cache,
    spent: Spent,
) -> Iterator[Result]:
    """Yield the result of each conversation, in order.

    Args:
        writer: answers.
        conversations: taken one by one, a little ahead of what is yielded.
        cache: keeps answers.
        spent: counts what is asked.

    Raises:
        GenerationError: the writer cannot be used; answers until then are in the cache.
    """
    kept = _Kept(writer.name, cache, spent)
    run = _threads if isinstance(writer, EndpointGenerator) else _waves
    try:
        yield from run(writer, iter(conversations), kept)
    finally:
        kept.close()


# -- behind an endpoint ---------------------------------------------------------------------------


def _threads(
    writer: Any, conversations: Iterator[Conversation[Result]], kept: _Kept
) -> Iterator[Result]:
    stopped = threading.Event()
    pool = ThreadPoolExecutor(writer.concurrency)
    running: deque[Future[Result]] = deque()
    ahead = _AHEAD * writer.concurrency
    try:
        for conversation in conversations:
            running.append(pool.submit(_held, writer, conversation, kept, stopped))
            while len(running) > ahead or (running and running[0].done()):
                yield _result(running.popleft(), running)
        while running:
            yield _result(running.popleft(), running)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def _held(
    writer: EndpointGenerator,
    conversation: Conversation[Result],
    kept: _Kept,
    stopped: threading.Event,
) -> Result:
    """Hold one conversation to its end."""
    try:
        question = next(conversation)
        while True:
            key = kept.key(question)
            answer = kept.get(key)
            if answer is None:
                answer = writer.answer(question, stopped)
                kept.put(key, answer)
            question = conversation.send(answer)
    except StopIteration as end:
        result: Result = end.value
        return result
    except BaseException:
        stopped.set()
        raise


def _result(job: Future[Result], others: Iterable[Future[Result]]) -> Result:
    """Return a result; where a conversation failed, raise its error and not what it caused."""
    try:
        return job.result()
    except CancelledError:
        for other in others:
            with suppress(CancelledError):
                other.result()
        raise GenerationError("the endpoint failed; what was generated is in the cache") from None


# -- on this machine ------------------------------------------------------------------------------


def _waves(
    writer: Generator, conversations: Iterator[Conversation[Result]], kept: _Kept
) -> Iterator[Result]:
    while wave := list(islice(conversations, _WAVE)):
        yield from _wave(writer, wave, kept)


def _wave(writer: Generator, wave: Sequence[Conversation[Result]], kept: _Kept) -> Iterator[Result]:
    """Hold some conversations, all of which ask at the same time."""
    results: dict[int, Result] = {}
    asked: dict[int, Question] = {}
    sent: dict[int, Answer | None] = dict.fromkeys(range(len(wave)))
    while sent:
        asked.clear()
        for at, answer in sent.items():
            try:
                one = wave[at]
                asked[at] = next(one) if answer is None else one.send(answer)
            except StopIteration as end:
                results[at] = end.value
        sent = dict(_answered(writer, asked, kept))
    for at in range(len(wave)):
        yield results[at]


def _answered(
    writer: Generator, asked: dict[int, Question], kept: _Kept
) -> Iterator[tuple[int, Answer]]:
    """Yield the answer to each question; those of one kind are generated together."""
    kinds: dict[Any, list[int]] = {}
    keys = {at: kept.key(question) for at, question in asked.items()}
    for at, question in asked.items():
        known = kept.get(keys[at])
        if known is not None:
            yield at, known
        else:
            kinds.setdefault(question.kind, []).append(at)
    for places in kinds.values():
        questions = [asked[at] for at in places]
        for place, answer in _generated(writer, questions):
            kept.put(keys[places[place]], answer)
            yield places[place], answer


def _generated(writer: Any, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
    """Yield the places of questions of one kind and their answers, as they come."""
    first = questions[0]
    chats, seeds = [one.chat for one in questions], [one.seed for one in questions]
    local = writer.writer() if hasattr(writer, "writer") else writer
    if first.labels or first.continuation is not None:
        yield from enumerate(scored(local, questions))
        return
    if hasattr(local, "as_written"):
        yield from local.as_written(
            chats,
            first.sampling,
            seeds,
            stop=first.stop,
            logprobs=first.logprobs,
            plain=first.plain,
        )
        return
    for place, text in enumerate(writer.generate(chats, first.sampling, seeds)):
        if text is None:
            yield place, Answer("the generator gave no text", "refused")
        else:
            yield place, Answer(*ended(text, first.stop, cut=False))
