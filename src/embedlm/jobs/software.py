"""Versions of the software that made a file."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION", "versions"]

VERSION = "0.1.0"
"""Of this package, also where it runs from its sources without being installed."""


def versions(*names: str) -> dict[str, str]:
    """Return the version of each distribution; of one that is not installed "missing"."""
    return {name: VERSION if name == "embedlm" else _installed(name) for name in names}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
