"""Public data sets by name, read from a model hub through the library datasets."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from embedlm.errors import InputError, closest, require
from embedlm.schema.base import Part, validated
from embedlm.schema.yaml_files import read_mapping

__all__ = ["Mixture", "PublicSet", "mixtures", "public_rows", "public_sets"]


class PublicSet(Part):
    """A data set: where it is, what its columns mean, what its licence is."""

    hub: str | None = Field(description="Id on the hub, or a folder; None: to be downloaded.")
    config: str | None = None
    split: str = "train"
    kind: Literal["pairs", "triplets", "groups", "labels", "clusters", "scored", "beir"]
    map: dict[str, str] = Field(default_factory=dict, description="Our field: their column.")
    license: str = "see the card"
    task: str = "retrieval"
    instruction: str | None = None
    note: str | None = None


class Mixture(Part):
    """Data sets that a system is trained on together."""

    about: str
    sets: dict[str, float] = Field(description="Share of each set's rows that is taken.")


@lru_cache(maxsize=1)
def _registry() -> dict[str, Any]:
    return read_mapping(Path(__file__).with_name("public.yaml"), "list of data sets")


@lru_cache(maxsize=1)
def public_sets() -> dict[str, PublicSet]:
    """Return the data sets by name."""
    return {
        name: validated(PublicSet, {**_registry()["defaults"], **fields}, name)
        for name, fields in _registry()["sets"].items()
    }


@lru_cache(maxsize=1)
def mixtures() -> dict[str, Mixture]:
    """Return the mixtures by name."""
    return {
        name: validated(Mixture, fields, name) for name, fields in _registry()["mixtures"].items()
    }


def public_rows(
    name: str,
    *,
    source: str | None = None,
    config: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    left_out: Counter[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set or mixture, as `embedlm train` reads them.

    They are streamed: nothing but the current rows is in memory (of a beir set its passages).

    Args:
        name: of `public_sets()` or `mixtures()`.
        source: another hub id or a folder, with the same columns; None: the set's.
        config: None: the set's.
        split: None: the set's.
        limit: rows at most; of a mixture of each set.
        seed: draws the share that a mixture takes of a set.
        left_out: counts the rows that are left out since they lack a text.

    Raises:
        InputError: an unknown name, a set that no hub has, or one that cannot be read.
        MissingExtraError: datasets is not installed.
    """
    if name in mixtures():
        if source or config or split:
            raise InputError(f"{name!r} is a mixture; source, config and split are of one set")
        for inner, share in mixtures()[name].sets.items():
            rng = random.Random(f"{seed}{inner}")
            rows = public_rows(inner, seed=seed, left_out=left_out)
            yield from islice((row for row in rows if rng.random() < share), limit)
        return
    known = public_sets()
    if name not in known:
        names = [*known, *mixtures()]
        raise InputError(
            f"{name!r} is no data set here.{closest(name, names)} See: embedlm data sets"
        )
    found = known[name]
    where = source or found.hub
    if where is None:
        raise InputError(f"no hub has {name!r} ready: {found.note}")
    told = {"source": name, "license": found.license, "task": found.task}
    if found.instruction is not None:
        told["instruction"] = found.instruction
    lacking = Counter() if left_out is None else left_out
    rows = _rows(found, where, config or found.config, split or found.split, lacking)
    for row in islice(rows, limit):
        yield {**row, **told}


def _rows(
    found: PublicSet, where: str, config: str | None, split: str, left_out: Counter[str]
) -> Iterator[dict[str, Any]]:
    if found.kind == "beir":
        yield from _beir(where, split, left_out)
        return
    for row in _loaded(where, config, split):
        made = list(_row(found, row))
        if not made:
            left_out["rows without a query or a positive"] += 1
        yield from made


def _loaded(where: str, config: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a split of a hub's data set."""
    datasets = require("datasets", "data")
    try:
        yield from datasets.load_dataset(where, config, split=split, streaming=True)
    except Exception as error:  # the library raises many kinds, requests' among them
        told = " ".join(str(error).split())[:300]
        raise InputError(f"the data set {where!r} cannot be read: {told}") from error


def _row(found: PublicSet, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what our files say for a row of theirs; one without a text is left out."""
    if found.kind == "labels":
        yield {"text": row["text"], "label": str(row.get("label_text", row["label"]))}
    elif found.kind == "clusters":
        for text, label in zip(row["sentences"], row["labels"], strict=True):
            yield {"text": text, "label": str(label)}
    elif found.kind == "scored":
        first, second, score = (row[found.map[k]] for k in ("first", "second", "score"))
        yield {"sentence1": first, "sentence2": second, "score": float(score)}
    else:
        query, positive = row[found.map["query"]], row[found.map["positive"]]
        made = {"query": query, "positives": positive if isinstance(positive, list) else [positive]}
        if "negative" in found.map:
            negative = row[found.map["negative"]]
            made["negatives"] = negative if isinstance(negative, list) else [negative]
        if query and any(made["positives"]):
            yield made


def _beir(where: str, split: str, left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Join the configurations corpus and queries with the judgements, WHERE-qrels."""
    judged: dict[str, list[str]] = {}
    for row in _loaded(f"{where}-qrels", None, split):
        if float(row["score"]) > 0:
            judged.setdefault(str(row["query-id"]), []).append(str(row["corpus-id"]))
    wanted = {id for ids in judged.values() for id in ids}
    texts = {
        str(row["_id"]): " ".join(part for part in (row.get("title"), row["text"]) if part)
        for row in _loaded(where, "corpus", "corpus")
        if str(row["_id"]) in wanted
    }
    for row in _loaded(where, "queries", "queries"):
        ids = [id for id in judged.get(str(row["_id"]), ()) if id in texts]
        lost = len(judged.get(str(row["_id"]), ())) - len(ids)
        if lost:
            left_out["positives that the corpus lacks"] += lost
        if ids:
            positives = [texts[id] for id in ids]
            yield {"query": row["text"], "positives": positives, "positive_ids": ids}
        elif lost:
            left_out["queries of which no positive is left"] += 1
