"""The folder of what is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from embedlm.errors import InputError

__all__ = ["expanded", "user_cache"]


def expanded(path: str | Path) -> Path:
    """Return a path whose `~` or `~user` is that user's home; it stays where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def user_cache() -> Path:
    """Return $EMBEDLM_CACHE, where that is a folder's name, else embedlm in the user's cache.

    Raises:
        InputError: the user has no home, or the variable names that of a user who has none.
    """
    configured = os.environ.get("EMBEDLM_CACHE")
    if configured and not configured.endswith(".sqlite"):
        path, given = expanded(configured), f"EMBEDLM_CACHE is {configured!r}"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        path, given = expanded(base) / "embedlm", f"the user's cache is in {base!r}"
    if path.parts[:1] and path.parts[0].startswith("~"):
        raise InputError(
            f"{given}, and {path.parts[0]!r} is no home that this machine knows; "
            "set EMBEDLM_CACHE to a folder's path"
        )
    return path
