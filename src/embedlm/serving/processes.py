"""Processes that run embedders beside the server's own, forked from it, so that weights are shared.

A pass over many short texts has small products. Two threads that share each of them wait for each
other at every one, and for the interpreter that the event loop holds; two processes of one thread
run two packs meanwhile, wait for nothing, and give the same vectors. A fork copies no memory until
it is written to, and weights never are.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from embedlm.backbone.memory import give_back
from embedlm.encode.prefix_cache import Counts
from embedlm.encode.rendered import Detached, Rendered
from embedlm.errors import EmbedLMError, InputError
from embedlm.serving.cores import this_core
from embedlm.serving.encoding import Encoding, Item, Served, Text
from embedlm.serving.exchange import Exchange, Stacked, receive, send, written
from embedlm.serving.fair import Group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedlm.serving.models import Models

__all__ = [
    "IDLE",
    "Process",
    "UnknownModelError",
    "apart",
    "check_count",
    "chosen",
    "default_count",
    "forked",
]

log = logging.getLogger(__name__)

Made = TypeVar("Made")

MOST = 8
"""Processes that are forked by default; each then has several threads."""
_ENDING = (signal.SIGTERM, signal.SIGINT)
IDLE = 1.0
"""Seconds without work after which freed memory is returned to the system."""
_PATIENCE = 5.0
"""Seconds in which a process that has no more work must have ended."""
_TO_END = 10.0
"""Seconds that a call may still take after an interrupt."""
UNSENT = Served("", None)
"""Stands for a model on its way to a process, which has it."""


class UnknownModelError(Exception):
    """Work of a model that the processes do not have."""


def apart(call: Callable[[], Made]) -> Made:
    """Return what a call gives in a thread that then ends.

    OpenMP keeps threads for each thread that has used it. Where they are more than the cores, all
    of them sleep at every short wait: models would run a sixth slower ever after.

    An interrupt (SIGTERM, Ctrl-C) is raised when the call has ended, or after `_TO_END` seconds.
    """
    made: list[Made] = []
    raised: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            made.append(call())
        except BaseException as error:
            raised.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        done.wait()
    except BaseException:
        # An interpreter that ends while a thread runs the libraries' code is aborted.
        interrupt = ctypes.py_object(KeyboardInterrupt)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), interrupt)
        done.wait(_TO_END)
        raise
    thread.join()
    if raised:
        raise raised[0]
    return made[0]


def default_count(models: Models) -> int:
    """Return how many processes serve models best: one a thread, or none that could help."""
    import torch

    threads = torch.get_num_threads()
    useful = any(not one.model.backbone.static for one in models.embedders.values())
    return min(threads, MOST) if useful and threads > 1 and not _hindrance(models) else 0


def check_count(count: int | None) -> None:
    """Refuse more processes than any machine has use for.

    Raises:
        InputError: so it is; with the largest number allowed.
    """
    most = max(64, os.cpu_count() or 1)
    if count is not None and count > most:
        raise InputError(
            f"--workers is {count}, and a process more than this machine has cores gains nothing; "
            f"give 0 to {most}, or leave it out for one a thread, at most {MOST}"
        )


def chosen(models: Models, count: int | None, prefix_bytes: int = 0) -> list[Process]:
    """Return so many processes; None: as many as serve best and can be started here.

    Args:
        models: that are served.
        count: of processes.
        prefix_bytes: that all of them and the server may keep of prompts, for each model.

    Raises:
        InputError: so many were asked for, and cannot be started.
    """
    check_count(count)
    wanted = default_count(models) if count is None else count
    try:
        return forked(models, wanted, prefix_bytes // (1 + wanted))
    except InputError as error:
        if count is not None:
            raise
        log.warning("the server runs its models alone: %s", error)
        return []


def forked(models: Models, count: int, prefix_bytes: int = 0) -> list[Process]:
    """Return so many processes that run the embedders of this one.

    Call it while this process has no other threads that work.

    Args:
        models: that are served.
        count: of processes; the threads of this one are divided among them.
        prefix_bytes: that each process may keep of prompts, for each model.

    Raises:
        InputError: they cannot be forked here, or not so many.
    """
    import torch

    if not count:
        return []
    if hindrance := _hindrance(models):
        raise InputError(f"--workers is {count}, but {hindrance}; leave it out, or give 0")
    served = [one for one in models.embedders.values() if one.model.generator is None]
    apart(lambda: [one.model.executor.lay_out() for one in served])  # once, for all to share
    gc.collect()
    gc.freeze()  # what is collected is written to, and would no longer be shared
    threads = max(1, torch.get_num_threads() // count)
    made: list[Process] = []
    try:
        with _one_tokenizer_thread(), _signals_later():
            for _ in range(count):
                made.append(Process(served, threads, prefix_bytes))
    except OSError as error:
        for one in made:
            one.close()
        raise InputError(
            f"{len(made)} of {count} processes could be started, and then: {error.strerror}; give "
            "fewer --workers, or 0 for none"
        ) from error
    return made


def _hindrance(models: Models) -> str | None:
    """Return why models cannot be run by forked processes; None: they can."""
    if sys.platform != "linux":
        return f"processes are forked under Linux only, and this is {sys.platform}"
    for one in models.embedders.values():
        if one.model.backbone.device.type != "cpu":
            return f"the model {one.name!r} runs on {one.model.backbone.device}, not on a CPU"
    return None if models.embedders else "no embedder is served"


@contextmanager
def _one_tokenizer_thread() -> Iterator[None]:
    """Have processes that are forked here tokenize in one thread: the others are not copied."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold SIGTERM and SIGINT back until processes are forked: what is raised in a fork is lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {one: signal.signal(one, lambda number, _: came.append(number)) for one in _ENDING}
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


class Process:
    """One process; it runs one batch at a time, in the order in which they came."""

    def __init__(self, served: Sequence[Served], threads: int, prefix_bytes: int) -> None:
        context = multiprocessing.get_context("fork")
        self._numbers = {id(one): number for number, one in enumerate(served)}
        self._line, theirs = socket.socketpair()
        self._process = context.Process(
            target=_serve, args=(theirs, served, threads, prefix_bytes), daemon=True
        )
        try:
            self._process.start()
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()
        self._exchange: Exchange | None = None
        self.prefixes: dict[str, Counts] = {}
        """What its caches of prefixes had done by its last answer, by model."""
        self.core = -1
        """Where it was when it gave its last answer; -1: that is not known."""

    @property
    def pid(self) -> int:
        """The process's number."""
        return int(self._process.pid or 0)

    @property
    def ended(self) -> bool:
        """Whether it can be asked no more."""
        return self._exchange is not None and self._exchange.ended

    async def begin(self) -> None:
        """Have this event loop exchange messages with it, from now on."""
        if self._exchange is None:
            self._exchange = Exchange(f"process {self.pid}")
            await self._exchange.over(self._line)

    async def run(
        self, group: Group, items: Sequence[Any], begins: Callable[[], object] = lambda: None
    ) -> Sequence[Any]:
        """Return what a group gives for items; several may ask at once, when it has begun.

        Args:
            group: of requests.
            items: of them.
            begins: is called when all that was asked for before has been answered.

        Raises:
            UnknownModelError: the process does not have the group's model.
            EndedError: the process has ended.
            EmbedLMError: what the group raised; RuntimeError where that is no error of ours.
        """
        number = self._numbers.get(id(getattr(group, "served", None)))
        if number is None or not isinstance(group, Encoding) or self._exchange is None:
            raise UnknownModelError
        message = written((number, replace(group, served=UNSENT), *_sent(items)))
        answer = await self._exchange.ask(message, begins)
        results, raised, self.prefixes, self.core = answer
        if raised is not None:
            raise raised
        return [*results]

    def kill(self) -> None:
        """End it now, with the work that it has, even if it answers nothing any more."""
        if self._is_there():
            self._process.kill()

    def _is_there(self) -> bool:
        """Tell whether the process's number is still its own.

        Where whoever started the server ignores SIGCHLD, nobody is told that a process has ended.
        """
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def leave(self) -> None:
        """Ask nothing of it any more: it ends when it has answered. The event loop calls this."""
        if self._exchange is None:
            self._line.close()
        else:
            self._exchange.close()

    def wait(self) -> None:
        """Wait until it has ended, as it does after `leave`; it is killed if it does not."""
        end = time.monotonic() + _PATIENCE
        # `join` would wait for ever: it trusts a pipe that the process has closed.
        while self._process.exitcode is None and self._is_there():
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.005)
        for count in self.prefixes.values():
            count.entries = count.bytes = 0

    def close(self) -> None:
        """End it where no event loop has begun with it, and wait until it has ended."""
        self.leave()
        self.wait()


def _sent(items: Sequence[Item]) -> tuple[Detached | Sequence[Text], list[str | None]]:
    """Return items as they are sent: tokenized texts without their tokenizer, and instructions."""
    texts = [text for text, _ in items]
    plain = [text.text if isinstance(text, Rendered) else text for text in texts]
    return Detached.of(texts) or plain, [instruction for _, instruction in items]


def _serve(line: socket.socket, served: Sequence[Served], threads: int, prefix_bytes: int) -> None:
    """Answer batches until the server has gone."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends, and this with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    # Its sockets, locks and other pipes are the server's: they must close when it closes them.
    os.closerange(3, line.fileno())
    os.closerange(line.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    torch.set_num_threads(threads)
    with ExitStack() as kept:
        for one in served:
            kept.enter_context(one.model.executor.fixed("off"))
            one.model.executor.keep_prefixes(prefix_bytes)
        with suppress(EOFError, OSError):
            while True:
                answer = _answer(served, *receive(line, IDLE, give_back))
                send(line, (*answer, this_core()))
    os._exit(0)  # what the server opened is not ours to close


def _answer(
    served: Sequence[Served],
    number: int,
    group: Encoding,
    texts: Detached | Sequence[Text],
    instructions: Sequence[str | None],
) -> tuple[Any, Exception | None, dict[str, Counts]]:
    """Return a batch's results, what it raised, and what the caches of prefixes have done."""
    results: Any = None
    raised: Exception | None = None
    try:
        group = replace(group, served=served[number])
        known = texts.by(group.renderer) if isinstance(texts, Detached) else texts
        results = Stacked.of(group.run(list(zip(known, instructions, strict=True))))
    except EmbedLMError as error:
        raised = error
    except Exception as error:  # which may be one that cannot be sent
        raised = RuntimeError(f"{type(error).__name__}: {error}")
    caches = {one.name: one.model.executor.prefixes for one in served}
    return results, raised, {name: one.counts for name, one in caches.items() if one is not None}
