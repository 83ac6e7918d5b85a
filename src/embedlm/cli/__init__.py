"""The command line; `embedlm --help` lists the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit; see `_app.main`.

    Its modules are imported here, so that Ctrl-C in that second ends it without a traceback.
    """
    try:
        from embedlm.cli._app import main as run
    except KeyboardInterrupt:
        print("embedlm: interrupted; nothing was begun", file=sys.stderr)
        sys.exit(130)
    run(arguments)
