"""The models that come with the package."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BUILTIN"]

_HERE = Path(__file__).parents[1] / "builtin"
BUILTIN = {"builtin": _HERE / "tuned", "builtin-base": _HERE / "base"}
"""Their folders, by name."""
