"""Options that say where on a server an index is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from embedlm.cli._options import path
from embedlm.errors import InputError

__all__ = ["Place"]


@Parameter(name="*", group="Server")
@dataclass(frozen=True)
class Place:
    """Where on a Qdrant server an index is."""

    collection: Annotated[
        str | None,
        Parameter(
            metavar="NAME", help="Collection on the server; without it the index's own name."
        ),
    ] = None
    api_key_file: Annotated[
        str | None,
        path("File with the server's key; without it QDRANT_API_KEY, if that is set."),
    ] = None

    def api_key(self) -> str | None:
        """Return the server's key, which no command line shows to other users."""
        if self.api_key_file is None:
            return os.environ.get("QDRANT_API_KEY") or None
        try:
            return Path(self.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the key file {self.api_key_file!r} cannot be read: {error}") from (
                error
            )
