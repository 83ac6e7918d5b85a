"""Results: a score with its uncertainty and units, the file that holds many, and the cache.

A result file is JSON with `schema`, its version. `tasks` is what programs read; `details` has the
rest: the units with their scores, the files' hashes, how the interval was found.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedlm.errors import InputError
from embedlm.evaluation.probes import SIGNED
from embedlm.evaluation.sample import BIASED, Sample, uncertainty
from embedlm.evaluation.statistics import LEVEL, SEED, detectable
from embedlm.evaluation.subject import Scored
from embedlm.evaluation.suite import Task
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.software import versions
from embedlm.jobs.user_cache import user_cache

__all__ = [
    "SCHEMA",
    "Cache",
    "Result",
    "ResultFile",
    "read_results",
    "result_of",
    "task_key",
    "with_interval",
    "write_results",
]

SCHEMA = 1
"""Version of the files of results; raised where a field changes its meaning."""
_LIBRARIES = ("embedlm", "torch", "transformers", "numpy", "scipy")


@dataclass(frozen=True)
class Result:
    """One task's outcome."""

    task: str
    metric: str
    score: float
    seconds: float
    more: dict[str, float] = field(default_factory=dict)
    """Further metrics and heads."""
    interval: tuple[float, float] = (float("nan"), float("nan"))
    """Of the main metric, 95 %."""
    error: float = float("nan")
    """Standard error of the main metric."""
    method: str = ""
    """How the interval was found."""
    sample: Sample | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    cached: bool = False
    """Whether an earlier run had finished the task."""

    @property
    def count(self) -> int:
        """Number of units."""
        return 0 if self.sample is None else len(self.sample)

    def scores(self) -> dict[str, Any]:
        """Return the metrics, the main one first, and its interval, None where it is not known."""
        interval = [None if math.isnan(end) else end for end in self.interval]
        return {self.metric: self.score, **self.more, "interval": interval}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["interval"] = list(self.interval)
        values["sample"] = None if self.sample is None else self.sample.as_dict()
        values["n"] = self.count
        values["detectable"] = detectable(self.error * 2**0.5)
        del values["cached"]
        return values

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], where: str) -> Result:
        """Return the result that `as_dict` gave.

        Raises:
            InputError: it is not one.
        """
        try:
            own = {name: value[name] for name in cls.__dataclass_fields__ if name != "cached"}
            own["interval"] = tuple(_number(end) for end in own["interval"])
            own["error"], own["score"] = _number(own["error"]), float(own["score"])
            if own["sample"] is not None:
                own["sample"] = Sample.from_dict(own["sample"], where)
            return cls(**own)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: not a result: {error!r} is wrong or missing") from error


def _number(value: float | None) -> float:
    """Return a number of a file, in which null is one that is not known."""
    return math.nan if value is None else value


def result_of(name: str, task: Task, scored: Scored, seconds: float) -> Result:
    """Return the result of a scored task, with the interval of its main metric."""
    score = scored.metrics[task.metric]
    more = {other: value for other, value in scored.metrics.items() if other != task.metric}
    notes = {**scored.notes, "kind": task.kind, "licence": task.licence}
    plain = Result(name, task.metric, score, seconds, more, notes=notes)
    return with_interval(plain, scored.sample, share=task.metric not in SIGNED)


def with_interval(plain: Result, sample: Sample, *, share: bool = True) -> Result:
    """Return a result with the units that its score is made of, and the score's interval.

    Args:
        plain: has the score.
        sample: the units.
        share: whether values of units lie between 0 and 1; see `uncertainty`.
    """
    values = sample.arrays["value"] if sample.statistic == "mean" else None
    biased = sample.statistic in BIASED
    sure = uncertainty(
        sample.rows(), len(sample), sample.keys(), values, biased=biased, share=share
    )
    # The V-measure is of draws and its resamples are of texts: the interval moves to the score.
    shift = plain.score - sure.resamples.estimate
    interval = sure.low + shift, sure.high + shift
    return replace(plain, interval=interval, error=sure.error, method=sure.method, sample=sample)


# -- the cache --------------------------------------------------------------------------------


def _hash(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def task_key(
    model: str, name: str, task: Task, paths: Mapping[str, Path], options: Mapping[str, Any]
) -> tuple[str, dict[str, str]]:
    """Return the key under which a task's result is kept, and the hashes of its files.

    Args:
        model: the hash of weights and recipe, `encode.identity.revision`.
        name: of the task.
        task: its definition; all of it but summary and licence counts.
        paths: its files, whose content counts and not their names.
        options: under which texts are encoded.
    """
    data = {what: _file_hash(path) for what, path in paths.items()}
    rules = task.model_dump(exclude={"summary", "licence", "files", "split"})
    libraries = versions(*_LIBRARIES)
    return _hash(SCHEMA, SEED, model, name, rules, data, dict(options), libraries), data


class Cache:
    """A folder of finished results, each in a file that is there whole or not at all."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or user_cache() / "evaluate"

    def get(self, key: str) -> Result | None:
        """Return a finished result; a damaged one counts as none."""
        path = self.folder / f"{key}.json"
        if not path.is_file():
            return None
        try:
            found = Result.from_dict(read_json(path, InputError), path.name)
        except InputError:
            return None
        return Result(**{**_fields(found), "cached": True})

    def put(self, key: str, result: Result) -> None:
        """Keep a finished result."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the cache folder {str(self.folder)!r} cannot be made: {error.strerror}; give "
                "another (--cache, EMBEDLM_CACHE)"
            ) from error
        write_json(self.folder / f"{key}.json", result.as_dict(), shared=True)


def _fields(result: Result) -> dict[str, Any]:
    return {name: getattr(result, name) for name in result.__dataclass_fields__}


# -- the file ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultFile:
    """The results of one model."""

    model: dict[str, Any]
    results: list[Result]


def machine() -> dict[str, Any]:
    """Return on what the results were computed."""
    import torch

    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions(*_LIBRARIES),
    }


def write_results(
    path: Path,
    results: Sequence[Result],
    model: Mapping[str, Any],
    *,
    data: Mapping[str, Mapping[str, str]],
    command: Sequence[str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a result file; it appears whole or not at all.

    Args:
        path: the file.
        results: of one model.
        model: its name, revision, recipe and options.
        data: the hashes of each task's files.
        command: the command that gave the results; None: this process's.
        more: further fields.
    """
    facts = {
        "schema": SCHEMA,
        "command": list(sys.argv if command is None else command),
        "seed": SEED,
        "level": LEVEL,
        "machine": machine(),
        "model": dict(model),
        **(more or {}),
        "tasks": {result.task: result.scores() for result in results},
        "details": {
            result.task: {**result.as_dict(), "data": dict(data.get(result.task, {}))}
            for result in results
        },
    }
    write_json(path, facts, indent=1)


def read_results(path: Path) -> ResultFile:
    """Return what `write_results` wrote.

    Raises:
        InputError: no such file, or not one of this version.
    """
    again = "write it again with embedlm evaluate MODEL -o FILE"
    value = read_json(path, InputError, again)
    schema = value.get("schema") if isinstance(value, dict) else None
    if isinstance(value, dict) and "kind" in value:
        raise InputError(
            f"{path} holds results of the kind {value['kind']!r}, not those of one model; give "
            "what embedlm evaluate MODEL -o FILE wrote"
        )
    if schema != SCHEMA:
        raise InputError(
            f"{path} is no result file of this version: its schema is {schema!r} and {SCHEMA} is "
            f"read; {again}"
        )
    details = value.get("details", {})
    if not isinstance(details, dict) or not isinstance(value.get("model", {}), dict):
        raise InputError(
            f"{path} holds damaged results: its model and details are no JSON objects; {again}"
        )
    results = [Result.from_dict(entry, f"{path}: {task}") for task, entry in details.items()]
    return ResultFile(value.get("model", {}), results)
