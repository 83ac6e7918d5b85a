"""Versions of the software that made a file."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import embedlm

__all__ = ["versions"]


def versions(*names: str) -> dict[str, str]:
    """Return the version of each distribution; of one that is not installed "missing".

    This package has one also where it runs from its sources without being installed.
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    if name == "embedlm":
        return embedlm.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
