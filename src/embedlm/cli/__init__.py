"""The command line; `embedlm --help` lists the commands."""

from embedlm.cli._app import main

__all__ = ["main"]
