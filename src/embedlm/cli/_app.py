"""The commands under one roof, and one way for all of them to fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError
from cyclopts.exceptions import UnusedCliTokensError

import embedlm
from embedlm.cli import (
    demonstrations,
    encode,
    merge,
    parity,
    recipes,
    render,
    rerank,
    search,
    similarity,
    train,
)
from embedlm.errors import EmbedLMError

__all__ = ["app", "main"]

DEBUG = "EMBEDLM_DEBUG"

app = App(
    name="embedlm",
    help="Turn any language model into an embedding model.",
    help_epilogue="""Examples:
  embedlm encode texts.jsonl -o vectors.npy
  embedlm encode texts.txt -m Qwen/Qwen3-0.6B -r prompteol -o vectors.parquet
  embedlm similarity "a river" "a stream" "a bank"
  embedlm search docs/ "how do I resume a job?"
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
MODULES = (encode, similarity, search, rerank, train, merge, render, demonstrations, parity)
for module in MODULES:
    app.command(module.command, name=module.NAME, help_epilogue=module.EXAMPLES)
app.command(recipes.app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 1 a fault of ours, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left; that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    sys.exit(code)


def _run(given: list[str]) -> int:
    try:
        app(given)
    except CycloptsError as error:
        return _complain(_usage(error, given), 2)
    except EmbedLMError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        raise
    except PermissionError as error:
        return _complain(f"cannot read or write {error.filename or 'a file'}: {error.strerror}", 2)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        return _complain(
            f"{type(error).__name__}: {error}. This is a fault in embedlm or in what it stands on; "
            f"run again with {DEBUG}=1 for the traceback",
            1,
        )
    return 0


def _usage(error: CycloptsError, given: list[str]) -> str:
    names = [module.NAME for module in MODULES]
    command = given[0] if given and given[0] in [*names, "recipes"] else ""
    text = str(error).strip().rstrip(".")
    if isinstance(error, UnusedCliTokensError):
        tokens = " ".join(map(repr, error.unused_tokens or ()))
        text = f"{tokens} is too much, or an option before it is misspelt"
    return f"{text}. See: embedlm {command + ' ' if command else ''}--help"


def _complain(message: str, code: int) -> int:
    """Tell what is wrong in one line on standard error."""
    if os.environ.get(DEBUG) and sys.exc_info()[0] not in (None, KeyboardInterrupt):
        import traceback

        traceback.print_exc()
    line = " ".join(message.split())
    print(f"embedlm: {line}", file=sys.stderr)
    return code
