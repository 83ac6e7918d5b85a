"""How an index knows its own passages on a server, and whether they are those that it has now.

Each passage there tells whose it is and in which state of the index it was pushed. An index has an
id from its first generation on, which a copy of its folder shares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedlm.errors import InputError
from embedlm.search.catalogue import Catalogue
from embedlm.search.server import QdrantStore

__all__ = ["OWNER", "STATE", "check_owner", "check_state", "owner_of", "state_of"]

OWNER, STATE = "index", "state"
"""Fields of a passage's payload: the index's id, and a digest of what it held."""


def owner_of(facts: Mapping[str, Any]) -> str:
    """Return the id of an index; one without any is known by its model."""
    return str(facts.get("id") or _digest(facts["model"]))


def state_of(facts: Mapping[str, Any], catalogue: Catalogue) -> str:
    """Return a digest of all that the vectors of an index depend on."""
    return _digest([owner_of(facts), facts["model"], facts["average"], catalogue.state()])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def check_owner(server: QdrantStore, facts: Mapping[str, Any]) -> None:
    """Refuse a collection that holds anything but passages of an index.

    Raises:
        InputError: with what can be done.
    """
    others = len(server) - server.count(OWNER, owner_of(facts))
    if others:
        raise InputError(
            f"the collection {server.collection!r} at {server.place} holds {others:,} points of "
            "another index, or that EmbedLM has not pushed; give another --collection, or "
            "--replace, which takes them out"
        )


def check_state(
    server: QdrantStore, facts: Mapping[str, Any], catalogue: Catalogue, root: Path
) -> None:
    """Refuse to search a collection that holds anything but the index as it is now.

    Raises:
        InputError: with how to push it.
    """
    held, same = len(server), server.count(STATE, state_of(facts, catalogue))
    if not held == same == len(catalogue):
        raise InputError(
            f"the collection {server.collection!r} at {server.place} holds {held:,} passages, "
            f"{same:,} of them as the index has them now, and the index {len(catalogue):,}; push "
            f"it first: embedlm index push {root} --to {server.place}"
        )
