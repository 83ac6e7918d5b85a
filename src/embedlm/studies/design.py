"""A study's design, a YAML file: what is varied, on which tasks, and against what.

A factor has levels. A level changes fields of the recipe, options of `encode`, the demonstrations,
or the model itself; a variant is one level of each factor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from embedlm.errors import RecipeError
from embedlm.evaluation.suite import Task, parsed_tasks
from embedlm.evaluation.tasks import OPTIONS
from embedlm.schema.arguments import check_names
from embedlm.schema.base import Name, Part, validated
from embedlm.schema.plan import Plan
from embedlm.schema.yaml_files import known_file, read_mapping

__all__ = ["Fit", "Level", "Reduction", "Shots", "Study", "Texts", "Variant", "studies", "variants"]


class Shots(Part):
    """Demonstrations that a prompt shows, chosen among candidates."""

    count: int = Field(ge=0)
    choose: Literal["random", "searched"] = Field(
        "random",
        description="searched: those that score best, each alone, on the dev pairs; the best one "
        "stands last.",
    )
    seed: int = Field(0, description="Of random ones.")
    candidates: int | None = Field(None, gt=0, description="The first so many; null: all.")
    dev: str = Field(
        "sts/stsb_train.jsonl", description="Scored pairs below the data folder, for searched ones."
    )
    pairs: int = Field(100, gt=1, description="The first so many of the dev pairs.")


class Texts(Part):
    """Texts that something is fitted to, without labels."""

    file: str = Field(description="Below the data folder.")
    field: str = Field("text", description="Its field with a text.")
    count: int = Field(2000, gt=1, description="The first so many.")


class Reduction(Part):
    """A linear layer that makes vectors smaller, fitted without labels."""

    kind: Literal["pca", "random"] = Field(
        description="pca: the first principal components; random: a rotation, cut."
    )
    dim: int = Field(gt=0)
    texts: Texts | None = Field(None, description="For pca.")

    @model_validator(mode="after")
    def _fitted_to_texts(self) -> Reduction:
        if (self.kind == "pca") != (self.texts is not None):
            raise ValueError("pca needs texts, and random takes none")
        return self


class Level(Part):
    """One setting of a factor, or all settings of a variant."""

    model: str | None = Field(None, description="Instead of the study's.")
    recipe: str | dict[str, Any] | None = Field(None, description="Instead of the study's.")
    change: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the recipe that are replaced."
    )
    encode: dict[str, Any] = Field(
        default_factory=dict, description="Options of encode: dim, precision, normalize, ..."
    )
    calibration: Texts | None = Field(
        None, description="That the ranges of int8 and uint8 are fitted to."
    )
    demonstrations: Shots | None = None
    reduce: Reduction | None = None
    train: dict[str, Any] | None = Field(
        None,
        description="The study's plan is trained first, with these fields replaced (a whole plan, "
        "where the study has none).",
    )
    x: float | None = Field(None, description="Its place on an axis, where its name is no number.")

    @field_validator("encode")
    @classmethod
    def _known_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_names("a study's encode", value, OPTIONS)
        return value


class Fit(Part):
    """A power law through the levels of a factor."""

    factor: str
    task: str
    x: Literal["level", "parameters"] = Field(
        "level", description="The level's number, or the weights without the embedding table."
    )


class Study(Part):
    """What is compared, on which tasks."""

    name: Name
    question: str = ""
    claim: str = Field("", description="What was published about it.")
    section: str | None = Field(None, description="Where the survey treats it.")
    model: str | None = Field(None, description="Folder, hub id or builtin; null: the built-in.")
    recipe: str | dict[str, Any] | None = Field(None, description="null: the model's own.")
    change: dict[str, Any] = Field(default_factory=dict)
    train: Plan | None = Field(None, description="The plan that levels with `train` change.")
    suite: str | None = Field(None, description="A suite of the package, or a .yaml file.")
    tasks: dict[Name, dict[str, Any]] = Field(
        default_factory=dict, description="Tasks as a suite writes them."
    )
    words: int | None = Field(None, gt=0, description="Words of a document that are embedded.")
    design: Literal["one", "grid"] = Field(
        "one", description="one: one factor at a time; grid: all combinations."
    )
    factors: dict[Name, dict[Name, Level]] = Field(min_length=1)
    baseline: dict[str, str] = Field(
        default_factory=dict, description="The level of a factor; else its first one."
    )
    within: str | None = Field(
        None,
        description="In a grid: compare the levels of this factor with each other at every setting "
        "of the others, instead of all variants with the baseline.",
    )
    fits: tuple[Fit, ...] = ()

    @field_validator("factors", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Write out factors of the short form {field: ..., values: [...]}."""
        if not isinstance(value, Mapping):
            return value
        return {name: _levels(str(name), levels) for name, levels in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for factor, level in self.baseline.items():
            if level not in self.factors.get(factor, {}):
                raise ValueError(f"baseline: {factor}: {level!r} is no level of a factor")
        if self.within is not None and (self.design != "grid" or self.within not in self.factors):
            raise ValueError("within names a factor of a grid")
        for fit in self.fits:
            if fit.factor not in self.factors:
                raise ValueError(f"fits: {fit.factor!r} is no factor")
        if bool(self.suite) == bool(self.tasks):
            raise ValueError("give a suite or tasks, and not both")
        return self

    @classmethod
    def load(cls, name: str | Path) -> Study:
        """Return the study of that name, or of a .yaml file.

        Raises:
            InputError: no such study.
            RecipeError: a file that is not valid.
        """
        path = known_file(name, _folder(), "study")
        fields = {"name": path.stem, **read_mapping(path, "study")}
        study = validated(cls, fields, path.name)
        study.own_tasks()
        list(variants(study))
        return study

    def own_tasks(self) -> dict[str, Task]:
        """Return the tasks that the file defines; none where it names a suite."""
        return parsed_tasks(self.tasks, self.name) if self.tasks else {}

    @property
    def settings(self) -> Level:
        """What all variants have."""
        return Level(model=self.model, recipe=self.recipe, change=self.change)


def _levels(factor: str, levels: Any) -> Any:
    """Return the levels of a factor, written out."""
    if not isinstance(levels, Mapping) or "values" not in levels:
        return levels
    fields = {key: levels[key] for key in levels if key != "values"}
    if set(fields) not in ({"field"}, {"option"}) or not isinstance(levels["values"], list):
        raise RecipeError(
            f"factors.{factor}: write {{field: pooling.kind, values: [last, mean]}}, or option: "
            "for an option of encode, or each level by its name"
        )
    group = "change" if "field" in fields else "encode"
    (key,) = fields.values()
    return {_called(value): {group: {key: value}} for value in levels["values"]}


def _called(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


@dataclass(frozen=True)
class Variant:
    """One level of each factor, with what that sets."""

    label: str
    levels: dict[str, str]
    settings: Level

    def number(self, factor: str, study: Study) -> float | None:
        """Return the level's place on an axis; None where it has none."""
        name = self.levels[factor]
        x = study.factors[factor][name].x
        if x is not None:
            return x
        try:
            return float(name)
        except ValueError:
            return None


def variants(study: Study) -> Iterator[Variant]:
    """Yield the variants of a study, the baseline first.

    Raises:
        RecipeError: two factors that set one field.
    """
    base = {
        name: study.baseline.get(name, next(iter(study.factors[name]))) for name in study.factors
    }
    chosen = [base]
    if study.design == "grid":
        names = list(study.factors)
        product = itertools.product(*(study.factors[name] for name in names))
        every = [dict(zip(names, levels, strict=True)) for levels in product]
        chosen += [levels for levels in every if levels != base]
    else:
        chosen += [
            {**base, name: level}
            for name, levels in study.factors.items()
            for level in levels
            if level != base[name]
        ]
    for levels in chosen:
        yield Variant(_label(levels, base, study), levels, _joined(levels, study))


def _label(levels: Mapping[str, str], base: Mapping[str, str], study: Study) -> str:
    """Return what a variant is called: its levels, or the one that differs from the baseline."""
    if study.design == "grid" or len(levels) == 1 or levels == base:
        return ", ".join(levels.values())
    name = next(name for name in levels if levels[name] != base[name])
    return f"{name}: {levels[name]}"


def _joined(levels: Mapping[str, str], study: Study) -> Level:
    """Return what a variant's levels set together, on top of what the study sets."""
    joined = study.settings.model_dump(exclude_defaults=True)
    setter: dict[str, str] = {}
    for factor, name in levels.items():
        own = study.factors[factor][name].model_dump(exclude_unset=True)
        for key, value in own.items():
            fields = (
                [f"{key}.{field}" for field in value]
                if key in ("change", "encode", "train") and isinstance(value, dict)
                else [key]
            )
            for field in fields:
                other = setter.setdefault(field, factor)
                if other != factor and field != "x":
                    raise RecipeError(
                        f"{study.name}: the factors {other!r} and {factor!r} both set {field}; "
                        "join them to one factor"
                    )
            merged = isinstance(value, dict) and key in ("change", "encode", "train")
            joined[key] = {**(joined.get(key) or {}), **value} if merged else value
    return validated(Level, joined, study.name)


def _folder() -> Path:
    return Path(str(files("embedlm.studies"))) / "designs"


@lru_cache
def studies() -> list[str]:
    """Return the names of the studies that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))
