"""The folder of what is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """Return $EMBEDLM_CACHE, where that is a folder's name, else embedlm in the user's cache."""
    configured = os.environ.get("EMBEDLM_CACHE")
    if configured and not configured.endswith(".sqlite"):
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "embedlm"
