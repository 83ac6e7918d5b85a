"""What callers may ask of mining, checked before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from embedlm.data import check_form
from embedlm.errors import InputError, closest
from embedlm.generation import Generator, resolve_generator
from embedlm.mining.filters import Filters
from embedlm.mining.judging import prompts_digest
from embedlm.mining.relabel import METHODS, MODES, MOST
from embedlm.mining.selection import Rules
from embedlm.schema.arguments import short

__all__ = ["Judging", "Settings", "whole"]


def whole(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least so many; refuse anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {short(value)}; give a whole number of {least} or more")
    return value


@dataclass(frozen=True, slots=True)
class Judging:
    """How language models judge what was mined."""

    llms: tuple[Generator, ...] = ()
    method: str = "rlhn"
    mode: str = "relabel"
    most: int = MOST

    @classmethod
    def of(cls, llm: Any, method: str, mode: str, most: int) -> Judging:
        """Check the options.

        Raises:
            InputError: an unknown method or mode, or more than two models.
        """
        for name, value, allowed in (("judge", method, METHODS), ("mode", mode, MODES)):
            if value not in allowed:
                raise InputError(
                    f"{name} is {short(value)}; allowed: {', '.join(allowed)}."
                    + closest(str(value), list(allowed))
                )
        whole("most", most, 0)
        given = [] if llm is None else list(llm) if isinstance(llm, list | tuple) else [llm]
        asked = {"judge": (method, "rlhn"), "mode": (mode, "relabel"), "most": (most, MOST)}
        unused = next((name for name, (one, usual) in asked.items() if one != usual), None)
        if unused is not None and not given:
            raise InputError(
                f"{unused} is {short(asked[unused][0])}, and no language model was given to judge; "
                "name one (llm), or leave it out"
            )
        if len(given) > 2:
            raise InputError(
                f"{len(given)} language models were given; give one, or two: the first flags, the "
                "second judges again what was flagged"
            )
        return cls(tuple(resolve_generator(one) for one in given), method, mode, most)

    def identity(self) -> dict[str, Any] | None:
        """Return what decides the verdicts."""
        if not self.llms:
            return None
        names = [llm.name for llm in self.llms]
        facts = {"method": self.method, "mode": self.mode, "most": self.most}
        return {"llms": names, **facts, "prompts": prompts_digest()}


@dataclass(frozen=True, slots=True)
class Settings:
    """How negatives are mined."""

    rules: Rules
    judging: Judging = field(default_factory=Judging)
    rerank: int = 0
    form: str = "records"

    @classmethod
    def of(cls, judging: Judging, reranker: bool, **given: Any) -> Settings:
        """Check the options of `mine`.

        Raises:
            InputError: a value that is not allowed, or an option that nothing could use.
        """
        filters = Filters.of(given["filters"])
        k, sample, rerank = whole("k", given["k"]), given["sample"], given["rerank"]
        if sample is not None and whole("sample", sample) < k:
            raise InputError(
                f"sample is {sample} and k is {k}: k negatives cannot be drawn from fewer "
                "candidates; give a larger sample"
            )
        first, last = _window(given["window"])
        whole("rerank", rerank, 0)
        if reranker and not rerank and filters.veto is None:
            raise InputError(
                "a re-ranker was given, and nothing uses it; give rerank=N to put the first N "
                "candidates in its order, or the filter veto=M"
            )
        if not reranker and (rerank or filters.veto is not None):
            used = "rerank" if rerank else "the filter veto"
            raise InputError(f"{used} needs a re-ranker, and none was given (reranker)")
        check_form(given["form"])
        seed = whole("seed", given["seed"], 0)
        if seed and sample is None and not judging.llms:
            raise InputError(
                f"seed is {seed}, and nothing is drawn by it: the hardest candidates are taken, "
                "and no language model judges; give sample or llm, or leave it out"
            )
        reserve = k if judging.llms and judging.mode != "drop" else 0
        rules = Rules(k, filters, first, last, sample, seed, reserve)
        return cls(rules, judging, rerank, given["form"])

    @classmethod
    def of_refining(cls, judging: Judging, reranker: bool, **given: Any) -> Settings:
        """Check the options of `refine`.

        Raises:
            InputError: a value that is not allowed, or an option that nothing could use.
        """
        filters = Filters.of(given["filters"])
        if reranker and filters.veto is None:
            raise InputError("a re-ranker was given, and nothing uses it; give the filter veto=M")
        if not reranker and filters.veto is not None:
            raise InputError("the filter veto needs a re-ranker, and none was given (reranker)")
        check_form(given["form"])
        seed = whole("seed", given["seed"], 0)
        if seed and not judging.llms:
            raise InputError(
                f"seed is {seed}, and no language model judges by it; give llm, or leave it out"
            )
        return cls(Rules(0, filters, seed=seed), judging, 0, given["form"])


def _window(window: Any) -> tuple[int, int | None]:
    """Return the first and the last rank of "10-100", "10-", (10, 100) or None."""
    if window is None:
        return 1, None
    wrong = InputError(
        f"window is {short(window)}; give the first and the last rank, from 1: 11-100 (or 11- for "
        "no end)"
    )
    parts: Sequence[Any] = window
    if isinstance(window, str):
        first, dash, last = window.partition("-")
        if not dash:
            raise wrong
        parts = [int(part) if part.isdecimal() else part or None for part in (first, last)]
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise wrong
    first, last = parts
    for part in (first, last):
        if part is not None and (isinstance(part, bool) or not isinstance(part, int) or part < 1):
            raise wrong
    if last is not None and last < (first or 1):
        raise wrong
    return first or 1, last
