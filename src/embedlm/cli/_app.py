"""All commands as one application, and the one way in which they fail."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from cyclopts import App, CycloptsError, Group
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    UnknownCommandError,
    UnusedCliTokensError,
)

import embedlm
from embedlm.cli import (
    adapt,
    advise,
    compare,
    compress,
    data,
    demonstrations,
    encode,
    evaluate,
    index,
    larmor,
    layers,
    mcp,
    merge,
    mine,
    parity,
    recipes,
    refine,
    render,
    report,
    rerank,
    score,
    search,
    serve,
    similarity,
    study,
    synthesize,
    train,
)
from embedlm.errors import EmbedLMError, InputError, closest

__all__ = ["app", "main"]

DEBUG = "EMBEDLM_DEBUG"
_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
"""What the disk refuses, for which no command is to blame."""

app = App(
    name="embedlm",
    help="Turn any language model into an embedding model.",
    help_epilogue="""Examples:
  embedlm encode texts.jsonl -o vectors.npy
  embedlm encode texts.txt -m Qwen/Qwen3-0.6B -r prompteol -o vectors.parquet
  embedlm similarity "a river" "a stream" "a bank"
  embedlm search docs/ "how do I resume a job?"
  embedlm index docs/ -o docs.index
  embedlm adapt docs/ -o adapted
  embedlm recipes show prompteol

A command's own options and examples: embedlm COMMAND --help""",
    help_format="plaintext",
    version=embedlm.__version__,
    version_flags=["--version"],
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
PANELS: dict[str, tuple[Any, ...]] = {
    "Embed and search": (encode, similarity, index, search, rerank),
    "Serve": (serve, mcp),
    "Look into": (recipes, render, demonstrations, layers),
    "Measure and choose": (evaluate, compare, parity, study, report, advise, larmor),
    "Training data": (data, synthesize, mine, refine, score),
    "Tune and shrink": (adapt, train, merge, compress),
}
"""The commands by what they are for, in the order in which the help shows them."""
GROUPS = (index.app, recipes.app, data.app)
"""Commands that have commands of their own."""
COMMANDS: list[str] = []
for panel, modules in PANELS.items():
    shown = Group.create_ordered(panel)
    for module in modules:
        if own := getattr(module, "app", None):
            own.group, own.group_commands = shown, Group.create_default_commands()
            app.command(own)
            COMMANDS += own.name
            continue
        app.command(
            module.command,
            name=module.NAME,
            usage=getattr(module, "USAGE", None),
            help_epilogue=module.EXAMPLES,
            group=shown,
        )
        COMMANDS.append(module.NAME)
app.group_commands = Group.create_ordered("Options")
app.register_install_completion_command(
    help="Install completion of commands and options for your shell."
)


class _Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit.

    The status is 0 when it is done, 1 for a fault of ours, 2 for bad input, 130 when it was
    interrupted and 143 when it was terminated.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_standard()
    _show_choices()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, kernels or none
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left; that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    sys.exit(code)


def _open_standard() -> None:
    """Open what of standard input, output and error is closed: files would take their places."""
    for place in range(3):
        try:
            os.fstat(place)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest place
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  # for all commands
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _show_choices() -> None:
    """Have what the loader chooses for a user told on standard error, a line each."""
    loader = logging.getLogger("embedlm.loader")
    loader.setLevel(logging.INFO)
    if not loader.handlers:
        loader.addHandler(logging.StreamHandler(sys.stderr))


def _run(words: list[str]) -> int:
    try:
        with _ended_by_sigterm():
            _check_unicode(words)
            app(words)
    except CycloptsError as error:
        return _complain(_usage(error, words), 2)
    except EmbedLMError as error:
        return _complain(str(error), 2)
    except _Terminated as interrupt:
        return _complain(f"terminated; {_kept(interrupt, words)}", 143)
    except KeyboardInterrupt as interrupt:
        return _complain(f"interrupted; {_kept(interrupt, words)}", 130)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in _DISK:
            return _fault(error)
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        first = "make room" if full else "let this user read and write there"
        advice = f"{first}, or name another place, and give the same command again"
        return _complain(
            f"cannot read or write {error.filename or 'a file'}: {error.strerror}; {advice}", 2
        )
    except Exception as error:
        return _fault(error)
    return 0


def _fault(error: Exception) -> int:
    """Tell a fault of ours, or raise it where the traceback is wanted."""
    if os.environ.get(DEBUG):
        raise error
    return _complain(
        f"{type(error).__name__}: {error}. This is a fault in embedlm or in what it stands on; "
        f"run again with {DEBUG}=1 for the traceback",
        1,
    )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as an interrupt does: files are closed and workers are ended."""

    def end(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(interrupt: KeyboardInterrupt, words: list[str]) -> str:
    """Say what a stopped command has kept, and how it goes on."""
    from embedlm.jobs.interrupts import KEPT, kept

    if words and words[0] in ("serve", "mcp"):
        return "the server was not ready yet"
    if not kept(interrupt):
        return "nothing was finished; to try again, give the same command again"
    return f"{KEPT} without --restart" if "--restart" in words else KEPT


def _check_unicode(words: list[str]) -> None:
    """Refuse bytes that are not text: they can be no part of a prompt, a file or a message."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"the argument {word!r} is not valid UTF-8; write it in UTF-8, and rename a file "
                "whose name is not"
            ) from error


def _usage(error: CycloptsError, words: list[str]) -> str:
    command = _command(words)
    if isinstance(error, UnknownCommandError) and not command:
        return (
            f"{words[0]!r} is not a command; allowed: {', '.join(COMMANDS)}."
            f"{closest(words[0], COMMANDS)} See: embedlm --help"
        )
    text = str(error).strip().rstrip(".")
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        positional = error.token.keyword is None
        text = f"{error.argument.name}: {text}" if positional else text
    if isinstance(error, MissingArgumentError):
        text = _missing(error) or text
    if isinstance(error, UnusedCliTokensError):
        text = _unused(error.unused_tokens or [], command)
    end = "" if text.endswith("?") else "."
    return f"{text}{end} See: embedlm {command + ' ' if command else ''}--help"


def _missing(error: MissingArgumentError) -> str | None:
    """Say which argument or option was not given; None: cyclopts knows what was meant."""
    if error.keyword is not None:
        return f"{error.keyword} needs a value"
    if error.argument is None or error.unused_tokens:
        return None
    return f"{error.argument.name} was not given"


def _unused(tokens: Sequence[str], command: str) -> str:
    """Say what of the command line nothing takes."""
    group = next((list(group) for group in GROUPS if command in group.name), [])
    names = [name for name in group if not name.startswith("-")]
    if hint := closest(tokens[0], names) if tokens else "":
        allowed = f"allowed: {', '.join(names)}"
        return f"{tokens[0]!r} is not a command of {command}; {allowed}.{hint}"
    count = "is one argument" if len(tokens) == 1 else f"are {len(tokens)} arguments"
    told = " ".join(map(repr, tokens))
    return f"{told} {count} too many, or an option before is misspelt"


def _command(words: list[str]) -> str:
    """Return the command that words begin with, with its second word if it has one; "": none."""
    if not words or words[0] not in COMMANDS:
        return ""
    group = next((group for group in GROUPS if words[0] in group.name), ())
    return " ".join(words[:2] if len(words) > 1 and words[1] in group else words[:1])


def _complain(message: str, code: int) -> int:
    """Print one line on standard error and return the exit status."""
    if os.environ.get(DEBUG) and sys.exc_info()[0] not in (None, KeyboardInterrupt):
        import traceback

        traceback.print_exc()
    line = " ".join(message.split())
    print(f"embedlm: {line}", file=sys.stderr)
    return code
