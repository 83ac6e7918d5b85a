"""Mined records become training records: what the rules have left, with a teacher's scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedlm.adaptation.queries import write_lines_of
from embedlm.adaptation.split import DEV, TRAIN
from embedlm.data import Source, TrainingRecord, training_records
from embedlm.errors import InputError
from embedlm.jobs import Reject

__all__ = ["select_records"]


def select_records(mined: Path, data: Path, *, scored: bool) -> dict[str, Any]:
    """Write the records of two parts; return how many there are, and why others are left out.

    Args:
        mined: records with negatives.
        data: the folder to write train.jsonl and dev.jsonl to.
        scored: the scores are a teacher's; else they are left out.

    Raises:
        InputError: fewer than two training records, or no dev record, are left.
    """
    rows: dict[str, list[dict[str, Any]]] = {TRAIN: [], DEV: []}
    out: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for record in _records(mined):
        part = str(record.others.pop("part"))
        kept = _kept(record)
        if kept is not None:
            out[kept] += 1
            continue
        if not scored:
            for document in record.documents:
                document.score = None
            record.provenance.pop("scores", None)
        rows[part].append(record.to_json())
        if part == TRAIN:
            kinds[str(record.others["kind"])] += 1
    if len(rows[TRAIN]) < 2 or not rows[DEV]:
        told = "; ".join(f"{count} {why}" for why, count in out.items())
        raise InputError(
            f"{len(rows[TRAIN])} queries to train on and {len(rows[DEV])} to choose by are left "
            f"after mining{f' ({told})' if told else ''}; give more documents or queries, or "
            "weaker filters (perc_pos, consistency)"
        )
    for part, own in rows.items():
        write_lines_of(data / f"{part}.jsonl", own)
    return {
        TRAIN: len(rows[TRAIN]),
        DEV: len(rows[DEV]),
        "kinds": dict(sorted(kinds.items())),
        "left_out": dict(sorted(out.items())),
    }


def _records(mined: Path) -> Iterator[TrainingRecord]:
    for record in training_records(Source(mined)):
        assert not isinstance(record, Reject), record.error  # we have written the file
        yield record


def _kept(record: TrainingRecord) -> str | None:
    """Keep the positive that is trained on; return why the record is left out, else None."""
    if record.others.pop("reduced"):
        record.positives = [one for one in record.positives if one.id is None]
    if not record.positives:
        return "consistency: the search does not find the passage"
    known = {one.text for one in record.positives}
    record.negatives = [one for one in record.negatives if one.text not in known]
    return None if record.negatives else "no negative was found"
