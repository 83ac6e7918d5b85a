"""What callers may ask of an adaptation, checked before anything is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embedlm.errors import InputError, closest, require
from embedlm.mining import Filters
from embedlm.schema.arguments import short

__all__ = ["DERIVED", "GIVEN", "WRITTEN", "Settings"]

DERIVED = ("title", "heading", "first_sentence", "keywords", "cloze", "question")
"""Kinds of queries that come from the documents alone."""
GIVEN, WRITTEN = "given", "llm"
"""Queries of the caller, and those that a language model writes."""
_RANK = 16
_LARGEST = (1 << 63) - 1
"""Seed that torch takes."""
_WHOLE = ("chunk_tokens", "per_chunk", "queries", "negatives", "batch", "steps", "rank", "seed")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is adapted; see `adapt` for what each means."""

    kinds: tuple[str, ...] = DERIVED
    chunk_tokens: int = 128
    per_chunk: int = 2
    queries: int = 800
    held_out: float = 0.2
    negatives: int = 1
    filters: Mapping[str, float] | None = None
    train: str = "adapter"
    rank: int = _RANK
    batch: int = 16
    steps: int | None = None
    learning_rate: float = 5e-4
    seed: int = 0

    @classmethod
    def of(cls, kinds: Any, given: bool, llm: bool, **options: Any) -> Settings:
        """Check the options of `adapt`.

        Args:
            kinds: those that the caller names; None: those that can be had.
            given: the caller has queries.
            llm: a language model writes queries.
            **options: the other fields.

        Raises:
            InputError: a value that is not allowed, or a kind whose source was not given.
            MissingExtraError: an adapter is to be trained, and peft is not installed.
        """
        if kinds is None:
            derived = () if given else DERIVED
            kinds = (*([GIVEN] if given else []), *([WRITTEN] if llm else []), *derived)
        chosen = _kinds(kinds)
        for kind, there, option in ((GIVEN, given, "queries"), (WRITTEN, llm, "llm")):
            if (kind in chosen) is not there:
                told = "was asked for, and none was" if kind in chosen else "is left out, and one"
                raise InputError(
                    f"kinds: {kind} {told} given ({option}); name both or neither of them"
                )
        rank = options.pop("rank", None)
        if rank is not None and options.get("train") == "all":
            raise InputError(
                f"rank is {short(rank)}, and train is all, which trains no adapter; leave rank out"
            )
        settings = cls(kinds=chosen, rank=_RANK if rank is None else rank, **options)
        settings._check()
        if settings.train == "adapter":
            require("peft", "train")  # told before documents are read and models loaded
        return settings

    def _check(self) -> None:
        for name in _WHOLE:
            value = getattr(self, name)
            least, most = (0, _LARGEST) if name == "seed" else (1, math.inf)
            number = isinstance(value, int) and not isinstance(value, bool)
            if not (number and least <= value <= most) and not (name == "steps" and value is None):
                told = f"{least} or more" if most == math.inf else f"{least} to {most:,}"
                raise InputError(f"{name} is {short(value)}; give a whole number of {told}")
        for name, most in (("held_out", 0.5), ("learning_rate", 1.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 < value <= most:
                raise InputError(f"{name} is {short(value)}; give a number above 0, up to {most}")
        if self.batch < 2:
            raise InputError("batch is 1; give 2 or more, since queries learn from each other")
        if self.train not in ("adapter", "all"):
            raise InputError(
                f"train is {short(self.train)}; allowed: adapter (LoRA) or all (every weight)"
            )
        Filters.of(self.filters)

    def rules(self) -> dict[str, float]:
        """Return the filters of mining: those given, or the 95 % rule and the consistency of 20."""
        chosen = {"perc_pos": 0.95, "consistency": 20} if self.filters is None else self.filters
        return Filters.of(chosen).given()

    def facts(self) -> dict[str, Any]:
        """Return all that outputs depend on."""
        return {**asdict(self), "filters": self.rules()}


def _kinds(kinds: str | Sequence[str]) -> tuple[str, ...]:
    known = [*DERIVED, GIVEN, WRITTEN]
    chosen = tuple(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    if not chosen:
        raise InputError(f"kinds is empty; name some of {', '.join(known)}")
    for kind in chosen:
        if kind not in known:
            raise InputError(
                f"kinds: {kind!r} is not known; allowed: {', '.join(known)}."
                + closest(str(kind), known)
            )
    return chosen
