"""Adapters with names: one for each task (Jina-embeddings-v3), or one for queries (DiSCo).

Each text is embedded with one of them. All are saved with the model, and `encode` chooses one by
role or by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from embedlm.errors import InputError
from embedlm.schema.tuning import Adapter, Stage
from embedlm.training.language import LANGUAGE

__all__ = ["adapter_of", "adapters_of", "changes_of", "check_adapters", "check_stages"]

QUERY = "query"
"""The adapter of `train: query_encoder`; documents have none."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def adapter_of(stage: Stage, source: int, role: str | None) -> str | None:
    """Return the adapter that a data set's texts of a role train; None if they train none."""
    if stage.train == "query_encoder":
        return QUERY if role == QUERY else None
    adapter = stage.data[source].adapter
    return adapter.get(role or "default") if isinstance(adapter, dict) else adapter


def adapters_of(stage: Stage) -> list[str]:
    """Return the names of the adapters that a stage trains, in order."""
    if stage.train == "query_encoder":
        return [QUERY]
    named: list[str] = []
    for data in stage.data:
        adapter = data.adapter
        named += adapter.values() if isinstance(adapter, dict) else [adapter] if adapter else []
    return list(dict.fromkeys(named))


def changes_of(stages: Sequence[Stage]) -> dict[str, Any]:
    """Return the changes of a recipe that keep adapters switchable and assign them to roles."""
    roles: dict[str, Any] = {}
    for stage in stages:
        if stage.train == "query_encoder":
            roles[f"backbone.adapter_roles.{QUERY}"] = QUERY
        for data in stage.data:
            if isinstance(data.adapter, dict):
                for role, name in data.adapter.items():
                    roles[f"backbone.adapter_roles.{role}"] = name
    if not any(adapters_of(stage) for stage in stages):
        return {}
    return {"backbone.merge": False, **roles}


def check_adapters(stage: Stage, kind: str) -> None:
    """Refuse adapters that cannot be trained with the settings of a stage.

    Raises:
        InputError: it says what to change.
    """
    names, where = adapters_of(stage), f"stage {stage.name!r}"
    if not names:
        return
    if stage.train not in ("adapter", "query_encoder"):
        raise InputError(f"{where}: data that name an adapter need train: adapter")
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{where}: adapter {name!r} is not a name; use letters, digits, '_', '-' and '.'"
            )
    _check_training(stage, where)
    if stage.train == "query_encoder" and kind != "groups":
        raise InputError(f"{where}: train: query_encoder needs queries with documents, not {kind}")
    roles = ("query", "document") if kind == "groups" else (None,)
    used = [{role: adapter_of(stage, i, role) for role in roles} for i in range(len(stage.data))]
    if not all(any(adapters.values()) for adapters in used):
        raise InputError(
            f"{where}: a data set names no adapter for the roles of its texts; give "
            "each set `adapter: NAME` or `adapter: {role: NAME}`"
        )
    if any(adapters != used[0] for adapters in used) and not stage.batching.homogeneous:
        raise InputError(f"{where}: data sets with different adapters need homogeneous: true")


def _check_training(stage: Stage, where: str) -> None:
    """Refuse settings of a stage that go with no adapter by name."""
    if stage.adapter is not None and stage.adapter.kind == "qlora":
        raise InputError(f"{where}: switchable adapters must be of kind lora or dora")
    if stage.gradient_checkpointing and stage.batching.chunk_tokens is None:
        raise InputError(
            f"{where}: gradient_checkpointing with switchable adapters needs batching.chunk_tokens"
        )
    if stage.train == "query_encoder" and any(data.adapter for data in stage.data):
        raise InputError(
            f"{where}: train: query_encoder trains one adapter, {QUERY!r}, for all queries, and a "
            "data set names another; leave it out, or take train: adapter"
        )
    language = [loss.kind for loss in stage.objective if loss.kind in LANGUAGE]
    if language:
        raise InputError(
            f"{where}: {', '.join(language)} runs the base without an adapter by name, and would "
            "train nothing; give it a stage of its own"
        )


def check_stages(stages: Sequence[Stage]) -> None:
    """Refuse stages that cannot follow those before them, because of their adapters by name.

    Raises:
        InputError: a stage that trains the base, or an adapter with other settings than before.
    """
    before: dict[str, Adapter] = {}
    for stage in stages:
        names, settings = adapters_of(stage), stage.adapter or Adapter()
        if before and not names:
            raise InputError(
                f"stage {stage.name!r} trains the base, and an earlier stage has trained adapters "
                f"by name on it ({', '.join(before)}); put it first, or name an adapter"
            )
        for name in names:
            known = before.setdefault(name, settings)
            if stage.adapter is not None and settings != known:
                raise InputError(
                    f"stage {stage.name!r} gives the adapter {name!r} other settings than an "
                    f"earlier stage; leave `adapter` out, or give it another name"
                )
