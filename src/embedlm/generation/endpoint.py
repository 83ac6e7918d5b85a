"""Text written by a server that speaks OpenAI's chat completions API."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from embedlm.errors import GenerationError, require
from embedlm.generation.gate import Gate
from embedlm.generation.generator import Answer, Chat, Question, Sampling, as_lines, ended

__all__ = ["EndpointGenerator"]

log = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0
"""Seconds between two attempts, however long the server asks for."""
_TOP = 20
"""Tokens whose log-probabilities are asked for: the most that OpenAI gives."""
_UNLIKELY = -20.0
"""Log-probability of a label that was not written, where the server gives none."""
_ALL_REFUSED = 32
"""After so many refusals and no answer, the requests are wrong, not the texts."""


class _Unusable(Exception):  # noqa: N818 (never leaves this module)
    """An answer without text; another attempt may bring one."""


class EndpointGenerator:
    """Generates with any server that speaks OpenAI's chat completions.

    After a rate limit, server error, timeout or broken answer a chat is sent again, with growing
    waits. A chat that the server refuses (400, 413 or 422: too long, filtered) gets no answer.

    Args:
        base_url: such as http://localhost:8000/v1.
        model: the model's name there.
        api_key: None takes $OPENAI_API_KEY, if there is one.
        name: the identity under which answers are cached; None takes the address and the model's
            name, since a local server often answers to any model name.
        concurrency: requests sent at once.
        timeout: seconds to wait for one answer.
        retries: attempts after the first.
        wait: seconds before the second attempt; doubled for each further one.
        per_minute: requests that `answer` sends in a minute at most; None: as many as it can.
        patience: seconds for which `answer` waits while the server gives no answer to anything.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        name: str | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 5,
        wait: float = 0.5,
        per_minute: float | None = None,
        patience: float = 600.0,
    ) -> None:
        openai = require("openai", "synth")
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=timeout,
            max_retries=0,
        )
        self.base_url, self.model = base_url, model
        self.concurrency, self.retries, self.wait = concurrency, retries, wait
        self.gate = Gate(per_minute, patience)
        self._thinks = False
        """Whether the model thinks aloud: a stop that the server is told would end its thoughts."""
        self.name = name or f"endpoint:{base_url.rstrip('/')}#{model}"

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, seeds: Sequence[int]
    ) -> Iterator[str | None]:
        """Yield the answer to each chat; up to `concurrency` chats are sent at once.

        After a failure no more chats are sent, but answers already received are still yielded.
        """
        stopped = threading.Event()
        failure: GenerationError | None = None
        refused = answered = 0
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            jobs = [
                pool.submit(self._job, chat, sampling, seed, stopped)
                for chat, seed in zip(chats, seeds, strict=True)
            ]
            for job in jobs:
                answer = None
                try:
                    answer = _finished(job)
                    refused, answered = refused + (answer is None), answered + (answer is not None)
                except GenerationError as error:
                    failure = failure or error
                yield answer
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure
        if refused >= _ALL_REFUSED and not answered:
            raise GenerationError(
                f"{self.base_url} (model {self.model!r}) refused each of {refused} requests; the "
                "last log lines say why"
            )

    def _job(
        self, chat: Chat, sampling: Sampling, seed: int, stopped: threading.Event
    ) -> str | None:
        if stopped.is_set():
            raise CancelledError
        try:
            return self._ask(chat, sampling, seed, stopped)
        except BaseException:
            stopped.set()
            raise

    def answer(self, question: Question, stopped: threading.Event) -> Answer:
        """Return the answer to one question; threads may call this at once.

        All calls share a rate limit and a circuit breaker: after several failures in a row one
        request at a time probes the server. A chat that fails while others are answered is
        refused. A server is given up that answers nothing for `patience` seconds, or nothing
        from the start: that is tried as often as any chat, unless it says that it is busy (429).

        Raises:
            GenerationError: the server cannot be used.
            CancelledError: `stopped` was set by another thread.
        """
        begun, attempt = self.gate.answered, 0
        while True:
            attempt += 1
            if not self.gate.enter(stopped):
                raise CancelledError
            try:
                answer = self._once(question)
            except Exception as error:
                kind = self._kind(error)
                if kind == "refused":
                    self.gate.refused()
                    return Answer(_told(error), "refused")
                if kind != "passing":
                    raise self._failed(error, attempt) from error
                pause = self.gate.failed(self._pause(error, attempt))
                if attempt > self.retries and self.gate.answered > begun:
                    return Answer(f"no answer after {attempt} attempts: {_told(error)}", "refused")
                limited = getattr(error, "status_code", None) == 429
                never = self.gate.answered == 0 and attempt > self.retries and not limited
                if never or self.gate.exhausted():
                    raise self._failed(error, attempt) from error
                stopped.wait(pause)
            else:
                self.gate.succeeded()
                return answer

    def _ask(
        self, chat: Chat, sampling: Sampling, seed: int, stopped: threading.Event
    ) -> str | None:
        """Return the answer to one chat; None if the server refuses it."""
        problem: Exception | None = None
        attempt = 0
        for attempt in range(1, self.retries + 2):
            try:
                answer = self._once(Question(chat, sampling, seed))
            except Exception as error:
                kind = self._kind(error)
                if kind == "refused":
                    self._refused(error)
                    return None
                if kind != "passing":
                    raise self._failed(error, attempt) from error
                problem = error
            else:
                return None if answer.finish == "refused" else answer.text
            if stopped.is_set() or attempt > self.retries:
                break
            stopped.wait(self._pause(problem, attempt))
        raise self._failed(problem, attempt) from problem

    def _kind(self, error: Exception) -> str:
        """Return refused (this chat), lasting (every chat), or passing (another try may do).

        Raises:
            Exception: the error itself, where neither the server nor its answer is at fault.
        """
        openai = self._openai
        if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            # If the server objects to a part other than the chat, it will refuse every request.
            return "refused" if error.param in (None, "messages") else "lasting"
        if isinstance(
            error,
            openai.AuthenticationError | openai.PermissionDeniedError | openai.NotFoundError,
        ):
            return "lasting"
        if not isinstance(error, openai.OpenAIError | _Unusable | ValueError):
            raise error
        return "refused" if getattr(error, "status_code", None) == 413 else "passing"

    def _once(self, question: Question) -> Answer:
        if question.continuation is not None:
            return self._likelihood(question, question.continuation)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": question.chat,
            "temperature": question.sampling.temperature,
            "top_p": question.sampling.top_p,
            "max_tokens": question.sampling.max_new_tokens,
            "seed": question.seed,
        }
        stopped = question.stop is not None and not self._thinks
        if stopped:
            body["stop"] = question.stop
        if question.logprobs or question.labels:
            body["logprobs"] = True
        if question.labels:
            body["top_logprobs"] = _TOP
        # chat.completions.create walks through the types of all its arguments and of the answer:
        # nearly half of the time of a request, which many threads cannot share.
        answer = json.loads(self._client.post("/chat/completions", cast_to=bytes, body=body))
        choices = _field(answer, "choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(_field(choice, "message"), dict):
            raise _Unusable("the answer holds no choices with a message")
        found = _read(answer, choice, question)
        if stopped and found.finish != "length" and _only_thought(choice, found):
            self._thinks = True
            return self._once(question)
        return found

    def _likelihood(self, question: Question, text: str) -> Answer:
        """Score a text behind a chat, which the completions API echoes with log-probabilities."""
        prompt = as_lines(question.chat) + " "
        answer = self._client.completions.create(
            model=self.model, prompt=prompt + text, max_tokens=1, echo=True, logprobs=1
        )
        found = getattr(answer.choices[0] if answer.choices else None, "logprobs", None)
        if found is None or not found.token_logprobs or not found.text_offset:
            raise GenerationError(
                f"{self.base_url} (model {self.model!r}) scores no text that it is given "
                "(completions with echo and logprobs, as vLLM has them); take a local model, or "
                "leave likelihood out of the step's rankers"
            )
        end = len(prompt) + len(text)
        pairs = zip(found.text_offset, found.token_logprobs, strict=True)
        total = sum(float(p) for at, p in pairs if len(prompt) - 1 <= at < end and p is not None)
        return Answer("", scores=(total,))

    def _pause(self, problem: Any, attempt: int) -> float:
        """Return the seconds to wait: what the server says, or twice as long each time."""
        header: Any = getattr(getattr(problem, "response", None), "headers", {}).get("retry-after")
        with suppress(TypeError, ValueError):
            asked = float(header)
            if math.isfinite(asked) and asked > 0:  # else the server would be asked without a pause
                return min(asked, _LONGEST_WAIT)
        return float(min(self.wait * 2 ** (attempt - 1), _LONGEST_WAIT))

    def _refused(self, error: Exception) -> None:
        log.warning("%s refused a chat: %s", self.base_url, _told(error))

    def _failed(self, problem: Any, attempts: int) -> GenerationError:
        return GenerationError(
            f"{self.base_url} (model {self.model!r}) gave no text after {attempts} "
            f"attempt{'s' if attempts > 1 else ''}: {_told(problem).rstrip('.')}. What was "
            "generated before is in the cache; check the endpoint's address, the model's name "
            "and the key (OPENAI_API_KEY), and run again"
        )


def _finished(job: Future[str | None]) -> str | None:
    with suppress(CancelledError):
        return job.result()
    return None


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _field(value: Any, name: str) -> Any:
    """Return what an object of an answer has under a name; None where it is no object."""
    return value.get(name) if isinstance(value, dict) else None


def _read(answer: Any, choice: Any, question: Question) -> Answer:
    """Return what an answer of the API holds."""
    message, usage = choice["message"], _field(answer, "usage")
    read, new = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    refusal = message.get("refusal")
    if refusal or choice.get("finish_reason") == "content_filter":
        return Answer(str(refusal or "the server filtered the answer"), "refused", read, new)
    cut = choice.get("finish_reason") == "length"
    text, finish = ended(_text(message.get("content")), question.stop, cut=cut)
    content = _field(choice.get("logprobs"), "content") or []
    likely = [_logprob(token) for token in content]
    mean = sum(likely) / len(likely) if likely else None
    scores = _label_scores(text, content, question.labels) if question.labels else None
    return Answer(text, finish, read, new, mean, scores)


def _logprob(token: Any) -> float:
    try:
        return float(_field(token, "logprob"))
    except TypeError as error:
        raise _Unusable("a token of the answer has no log-probability") from error


def _text(content: Any) -> str:
    """Return the text of a message, whose parts are joined where it is a list of them.

    Raises:
        _Unusable: the content is something else.
    """
    parts = content if isinstance(content, list) else [content or ""]
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(found):
        raise _Unusable("the answer's content is no text")
    # Half a character (a surrogate of JSON alone) can be written nowhere.
    return "".join(texts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(usage: Any, name: str) -> int:
    """Return a number of tokens; 0 where the server tells none that can be."""
    value = _field(usage, name)
    return max(value, 0) if isinstance(value, int) else 0


def _only_thought(choice: Any, answer: Answer) -> bool:
    """Tell whether an answer holds thoughts and nothing after them."""
    text = _text(choice["message"].get("content")).lstrip()
    return text.startswith("<think>") and (answer.finish == "refused" or not answer.text.strip())


def _label_scores(text: str, content: Any, labels: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the log-probability of each label as the first token; None: none was written.

    Without log-probabilities the label that was written has probability 1. A label that is not
    among the likeliest tokens counts as less likely than these.
    """
    if not content:
        written = [label for label in labels if text.strip().casefold() == label.casefold()]
        return (
            tuple(0.0 if label in written else _UNLIKELY for label in labels) if written else None
        )
    found: dict[str, float] = {}
    for token in _field(content[0], "top_logprobs") or []:
        found.setdefault(str(_field(token, "token")).strip().casefold(), _logprob(token))
    least = min(found.values(), default=0.0) - 1.0
    scores = tuple(found.get(label.casefold(), least) for label in labels)
    return scores if any(label.casefold() in found for label in labels) else None
