"""WEAT and SEAT: association tests of words and sentences, with permutation p values.

    s(w) = mean over a in A of cos(w, a) - mean over b in B of cos(w, b)
    d = (mean over X of s - mean over Y of s) / deviation of s over X and Y together (n - 1)

Caliskan, Bryson and Narayanan (Science 2017); of sentences May et al. (NAACL 2019), whose
implementation this equals. The p value is one-sided: the share of equal partitions of X and Y
together whose difference is at least the one found.

Shapes: X, Y targets, A, B attributes, T = X + Y targets, R permutations, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data import read_rows
from embedlm.errors import InputError, RecordError
from embedlm.evaluation.probes import Association, AssociationFields
from embedlm.evaluation.readers import text_of
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import LEVEL, PERMUTATIONS, SEED, holm
from embedlm.evaluation.subject import Scored, Subject

__all__ = ["AssociationTest", "Effect", "association", "effects_of", "read_tests", "weat"]

Floats = npt.NDArray[np.float64]
_CHUNK = 1 << 21
"""Random numbers that are drawn at once."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What an association test found."""

    effect: float
    """d: in deviations; above 0 where X goes with A."""
    p: float
    null: float
    """Mean |d| of the permutations: what |d| is without any association."""


@dataclass(frozen=True, slots=True)
class AssociationTest:
    """The texts of a test."""

    name: str
    targets: tuple[list[str], list[str]]
    attributes: tuple[list[str], list[str]]

    @property
    def texts(self) -> list[str]:
        """All texts: X, Y, A, B."""
        return [text for part in (*self.targets, *self.attributes) for text in part]


def weat(
    x_XD: npt.ArrayLike,
    y_YD: npt.ArrayLike,
    a_AD: npt.ArrayLike,
    b_BD: npt.ArrayLike,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = SEED,
) -> Effect:
    """Return the effect size of an association test and its one-sided p value.

    Args:
        x_XD: vectors of the first targets.
        y_YD: of the second.
        a_AD: of the first attributes.
        b_BD: of the second.
        permutations: partitions that are drawn, where there are more; else all are counted.
        seed: of the draws.

    Raises:
        InputError: a set without vectors, or targets that all associate alike.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in (x_XD, y_YD, a_AD, b_BD)]
    if any(part.ndim != 2 or len(part) == 0 for part in parts):
        raise InputError("an association test needs vectors (n, dim) of four sets, none empty")
    x, y, a, b = (_unit(part) for part in parts)
    targets = np.concatenate([x, y])
    s_T = (targets @ a.T).mean(axis=1) - (targets @ b.T).mean(axis=1)
    deviation = float(s_T.std(ddof=1)) if len(s_T) > 1 else 0.0
    if deviation == 0:
        raise InputError("all targets of the association test have the same vector or association")
    first = len(x)
    drawn_R = _partitions(s_T, first, permutations, seed)
    # Sums that are equal on paper may differ in their last bit.
    found = float(s_T[:first].sum()) - 1e-12 * float(np.abs(s_T).sum())
    extreme = int((drawn_R >= found).sum())
    every = math.comb(len(s_T), first) <= permutations
    p = extreme / len(drawn_R) if every else (extreme + 1) / (len(drawn_R) + 1)
    effects_R = _difference(drawn_R, s_T, first) / deviation
    effect = float(_difference(s_T[:first].sum(), s_T, first)) / deviation
    return Effect(effect, p, float(np.abs(effects_R).mean()))


def _unit(vectors_ND: Floats) -> Floats:
    norms: Floats = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.maximum(norms, 1e-12)


def _difference(sum_R: Any, s_T: Floats, first: int) -> Any:
    """Return mean over X less mean over Y, from the sum over X."""
    return sum_R / first - (s_T.sum() - sum_R) / (len(s_T) - first)


def _partitions(s_T: Floats, first: int, permutations: int, seed: int) -> Floats:
    """Return the sum over X of every partition, or of random ones."""
    if math.comb(len(s_T), first) <= permutations:
        chosen = np.array(list(combinations(range(len(s_T)), first)), dtype=np.int64)
        return np.asarray(s_T[chosen].sum(axis=1), dtype=np.float64)
    rng = np.random.default_rng(seed)
    sums, rows = [], max(1, _CHUNK // len(s_T))
    for start in range(0, permutations, rows):
        keys = rng.random((min(rows, permutations - start), len(s_T)), dtype=np.float32)
        chosen = np.argpartition(keys, first - 1, axis=1)[:, :first]
        sums.append(s_T[chosen].sum(axis=1))
    return np.concatenate(sums)


# -- the task ---------------------------------------------------------------------------------


def association(subject: Subject, task: Association, paths: Mapping[str, Path]) -> Scored:
    """Score association tests: the mean |d|, and how many are significant after Holm."""
    tests = read_tests(paths["tests"], task.fields, task.only)
    texts = list(dict.fromkeys(text for test in tests for text in test.texts))
    subject = subject.fitted(texts)
    vectors = dict(zip(texts, subject.floats(texts, task), strict=True))
    found = effects_of(tests, vectors, task.permutations)
    corrected = holm([one.p for one in found])
    size = np.array([abs(one.effect) for one in found])
    sure = np.array([p <= 1 - LEVEL for p in corrected], dtype=float)
    metrics = {
        "effect": float(size.mean()),
        "significant": float(sure.mean()),
        "null_effect": float(np.mean([one.null for one in found])),
    }
    notes = {
        test.name: {"effect": one.effect, "p": one.p, "p_holm": p, "null_effect": one.null}
        for test, one, p in zip(tests, found, corrected, strict=True)
    }
    sample = Sample.of(
        "mean",
        "test",
        [test.name for test in tests],
        [[test.name] for test in tests],
        {"value": size if task.metric == "effect" else sure, "effect": [o.effect for o in found]},
    )
    return Scored(metrics, sample, {"tests": notes})


def effects_of(
    tests: Sequence[AssociationTest],
    vectors: Mapping[str, npt.NDArray[Any]],
    permutations: int = PERMUTATIONS,
) -> list[Effect]:
    """Return the effect of each test.

    Args:
        tests: with their texts.
        vectors: of all texts, (D,) each.
        permutations: see `weat`.
    """
    found = []
    for test in tests:
        parts = [
            np.stack([vectors[text] for text in part]) for part in (*test.targets, *test.attributes)
        ]
        found.append(weat(parts[0], parts[1], parts[2], parts[3], permutations=permutations))
    return found


def read_tests(path: Path, fields: AssociationFields, only: str = "*") -> list[AssociationTest]:
    """Return the association tests of a file.

    Args:
        path: the file.
        fields: the names of its fields.
        only: a pattern for the tests' names.

    Raises:
        RecordError: a test without one of its lists, or fewer than two tests.
    """
    tests = list(_tests(path, fields, only))
    if len(tests) < 2:
        raise RecordError(
            f"{path}: {len(tests)} tests have a name like {only!r}; two at least are needed"
        )
    return tests


def _tests(path: Path, fields: AssociationFields, only: str) -> Iterator[AssociationTest]:
    for where, record in read_rows(path):
        name = text_of(record, where, fields.name)
        if fnmatchcase(name, only):
            yield AssociationTest(
                name,
                (
                    _examples(record, where, fields.first_targets),
                    _examples(record, where, fields.second_targets),
                ),
                (
                    _examples(record, where, fields.first_attributes),
                    _examples(record, where, fields.second_attributes),
                ),
            )


def _examples(record: Mapping[str, Any], where: str, name: str) -> list[str]:
    value = record.get(name)
    texts = value.get("examples") if isinstance(value, Mapping) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise RecordError(f"{where}: {name!r} is no list of texts, nor has one as its 'examples'")
    return texts
