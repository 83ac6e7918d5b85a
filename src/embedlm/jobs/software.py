"""Versions of the software that made a file."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import embedlm

__all__ = ["versions"]


def versions(*names: str) -> dict[str, str]:
    """Return the version of each distribution; of one that is not installed "missing".

    This package has one also where it runs from its sources without being installed.
    """
    own = {"embedlm": embedlm.__version__}
    return {name: own.get(name) or _installed(name) for name in names}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
