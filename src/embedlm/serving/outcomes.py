"""What a batch's requests get: results, each its own, and the faults of their own alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from embedlm.serving.fair import Group, Piece

__all__ = ["Outcome", "deliver", "outcomes_of"]

Outcome = tuple[Piece, Sequence[Any] | BaseException]
Call = Callable[[Group, Sequence[Any]], Awaitable[Sequence[Any]]]
"""Runs a group's items."""


def deliver(piece: Piece, outcome: Sequence[Any] | BaseException) -> None:
    """Give a job what came of some of its items; it is done with the last, or with an error."""
    job = piece.job
    if job.over:
        return
    if isinstance(outcome, BaseException):
        job.future.set_exception(outcome)
        return
    job.results[piece.start : piece.stop] = outcome
    job.left -= piece.stop - piece.start
    if job.left == 0:
        job.future.set_result(job.results)


async def outcomes_of(pieces: list[Piece], call: Call) -> list[Outcome]:
    """Run a batch, each group at once; what fails there is run anew, each request alone."""
    groups: dict[Group, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.job.group, []).append(piece)
    outcomes: list[Outcome] = []
    for group, members in groups.items():
        found = await _attempt(call, group, members)
        if isinstance(found[0][1], BaseException) and len(members) > 1:
            found = [(await _attempt(call, group, [piece]))[0] for piece in members]
        outcomes += found
    return outcomes


async def _attempt(call: Call, group: Group, pieces: list[Piece]) -> list[Outcome]:
    items = [item for piece in pieces for item in piece.job.items[piece.start : piece.stop]]
    try:
        results = await call(group, items)
    except Exception as error:  # a fault of ours must end neither the thread nor other requests
        return [(piece, error) for piece in pieces]
    outcomes: list[Outcome] = []
    at = 0
    for piece in pieces:
        size = piece.stop - piece.start
        outcomes.append((piece, results[at : at + size]))
        at += size
    return outcomes
