"""Which candidates may be answers that nobody has marked: the false-negative filters.

NV-Retriever (Moreira et al., arXiv 2407.15831) names and compares them. With s the score of a
candidate for the query, and s+ the least score of the query's known positives, one is kept when

    shift        rank > N                   N = 10 in the paper
    abs          s <= c                     TopK-Abs, c = 0.7
    margin_pos   s <= s+ - m                TopK-MarginPos, m = 0.05
    perc_pos     s <= s+ - |s+| (1 - p)     TopK-PercPos, p = 0.95, the best one there
    veto         r <= r+ - m                by a re-ranker's logits r, least positive's r+

|s+| keeps the last-but-one rule right where scores are negative. `consistency` is a filter of
positives: one that is not among the first N is dropped (KaLM, arXiv 2501.01028: N = 50).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError, closest
from embedlm.schema.arguments import short

__all__ = ["FILTERS", "KEPT", "Filters", "margin_bound", "percentage_bound", "reasons"]

KEPT = ""
"""The reason of a candidate that no rule drops."""


@dataclass(frozen=True, slots=True)
class Filters:
    """The constants of the rules; None: the rule is not applied."""

    shift: int | None = None
    """Candidates of a rank up to this are left out."""
    abs: float | None = None
    """The largest score of a negative."""
    margin_pos: float | None = None
    """By how much a negative scores below the worst positive, at least."""
    perc_pos: float | None = None
    """The share of the worst positive's score that a negative has, at most."""
    veto: float | None = None
    """As `margin_pos`, of a re-ranker's scores."""
    consistency: int | None = None
    """The last rank that a positive may have."""

    @classmethod
    def of(cls, given: Any) -> Filters:
        """Return the filters that a caller names.

        Args:
            given: None, a mapping of names to constants, or texts such as "perc_pos=0.95".

        Raises:
            InputError: an unknown name, a name given twice, or a constant that is not allowed.
        """
        if isinstance(given, Filters):
            return given
        chosen: dict[str, Any] = {}
        for name, value in _named(given):
            if name not in FILTERS:
                raise InputError(
                    f"the filter {name!r} is not known; allowed: {', '.join(FILTERS)}, each with "
                    f"its constant (perc_pos=0.95).{closest(name, list(FILTERS))}"
                )
            if name in chosen:
                raise InputError(f"the filter {name} is given twice; give it once")
            chosen[name] = _constant(name, value)
        return cls(**chosen)

    def given(self) -> dict[str, float]:
        """Return the rules that are applied, with their constants."""
        values = ((one.name, getattr(self, one.name)) for one in fields(self))
        return {name: value for name, value in values if value is not None}


FILTERS = {
    "shift": "a whole number of 0 or more, the ranks that are left out",
    "abs": "the largest score that a negative may have",
    "margin_pos": "a number of 0 or more, how far below the positive",
    "perc_pos": "a share of the positive's score, above 0 and at most 1",
    "veto": "how far below the positive in a re-ranker's logits, 0 or more",
    "consistency": "a whole number above 0, the ranks in which a positive must be",
}
"""The filters, and what the constant of each is."""


def _named(given: Any) -> Iterable[tuple[str, Any]]:
    if given is None:
        return []
    if isinstance(given, Mapping):
        return [(str(name), value) for name, value in given.items()]
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Iterable) or not all(isinstance(one, str) for one in given):
        raise InputError(
            f"filters is {short(given)}; give a mapping {{'perc_pos': 0.95}} or a list of texts "
            "such as 'perc_pos=0.95'"
        )
    parts = [one.partition("=") for one in given]
    return [(name.strip(), value) for name, _, value in parts]


def _constant(name: str, value: Any) -> float | int:
    """Return the constant of a filter."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    whole = name in ("shift", "consistency")
    low = {"abs": -math.inf, "consistency": 1}.get(name, 0)
    allowed = math.isfinite(number) and number >= low and not (whole and number % 1)
    if name == "perc_pos":
        allowed = allowed and 0 < number <= 1
    if not allowed:
        raise InputError(f"the filter {name}={value}: give {FILTERS[name]}")
    return int(number) if whole else number


def margin_bound(positive: float, margin: float) -> float:
    """Return the largest score of a negative by TopK-MarginPos: s+ - m."""
    return positive - margin


def percentage_bound(positive: float, share: float) -> float:
    """Return the largest score of a negative by TopK-PercPos: s+ - |s+| (1 - p)."""
    return positive - abs(positive) * (1 - share)


def reasons(
    filters: Filters,
    scores_K: npt.NDArray[np.float32],
    positive: float,
    first: int = 1,
) -> npt.NDArray[np.str_]:
    """Return the rule that drops each candidate of a ranking, the first of several; else KEPT.

    Args:
        filters: the rules; those by a re-ranker are applied elsewhere.
        scores_K: of the candidates at ranks 1, 2, ..., K.
        positive: s+.
        first: the first rank of the window.
    """
    rank_K = np.arange(1, len(scores_K) + 1)
    bounds = {
        "abs": filters.abs,
        "margin_pos": None
        if filters.margin_pos is None
        else margin_bound(positive, filters.margin_pos),
        "perc_pos": None
        if filters.perc_pos is None
        else percentage_bound(positive, filters.perc_pos),
    }
    found_K = np.full(len(scores_K), KEPT, dtype="U12")
    for name, bound in reversed(bounds.items()):
        if bound is not None:
            found_K[scores_K.astype(np.float64) > bound] = name
    found_K[rank_K <= (filters.shift or 0)] = "shift"
    found_K[rank_K < first] = "window"
    return found_K
