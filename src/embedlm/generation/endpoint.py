"""Text written by a server that speaks OpenAI's chat completions API."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from embedlm.errors import GenerationError, require
from embedlm.generation.generator import Chat, Sampling

__all__ = ["EndpointGenerator"]

log = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0
"""Seconds between two attempts, however long the server asks for."""
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

    def _ask(
        self, chat: Chat, sampling: Sampling, seed: int, stopped: threading.Event
    ) -> str | None:
        """Return the answer to one chat; None if the server refuses it."""
        openai, attempt = self._openai, 0
        problem: Exception | None = None
        for attempt in range(1, self.retries + 2):
            try:
                return self._once(chat, sampling, seed)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                # If the server objects to a part other than the chat, it will refuse every request.
                if error.param in (None, "messages"):
                    self._refused(error)
                    return None
                raise self._failed(error, attempt) from error
            except (
                openai.AuthenticationError,
                openai.PermissionDeniedError,
                openai.NotFoundError,
            ) as error:
                raise self._failed(error, attempt) from error
            except (openai.OpenAIError, _Unusable, ValueError) as error:
                if getattr(error, "status_code", None) == 413:
                    self._refused(error)
                    return None
                problem = error
            if stopped.is_set() or attempt > self.retries:
                break
            stopped.wait(self._pause(problem, attempt))
        raise self._failed(problem, attempt) from problem

    def _once(self, chat: Chat, sampling: Sampling, seed: int) -> str:
        answer = self._client.chat.completions.create(
            model=self.model,
            messages=chat,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
        )
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise _Unusable("the answer holds no choices")
        return str(choices[0].message.content or "")

    def _pause(self, problem: Any, attempt: int) -> float:
        """Return the seconds to wait: what the server says, or twice as long each time."""
        header: Any = getattr(getattr(problem, "response", None), "headers", {}).get("retry-after")
        with suppress(TypeError, ValueError):
            return min(max(float(header), 0.0), _LONGEST_WAIT)
        return float(min(self.wait * 2 ** (attempt - 1), _LONGEST_WAIT))

    def _refused(self, error: Exception) -> None:
        log.warning("%s refused a chat: %s", self.base_url, " ".join(str(error).split())[:300])

    def _failed(self, problem: Any, attempts: int) -> GenerationError:
        return GenerationError(
            f"{self.base_url} (model {self.model!r}) gave no text after {attempts} "
            f"attempt{'s' if attempts > 1 else ''}: {' '.join(str(problem).split())[:500]}. What "
            "was generated before is in the cache; check the endpoint and run again"
        )


def _finished(job: Future[str | None]) -> str | None:
    with suppress(CancelledError):
        return job.result()
    return None
