"""A pipeline: how training records are made with a language model, as steps with prompts.

Only the schema lives here; `embedlm.synthesis` runs pipelines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from embedlm.errors import RecipeError, closest
from embedlm.schema.arguments import usable_path
from embedlm.schema.base import Name, Part, set_path, validated
from embedlm.schema.yaml_files import read_mapping

__all__ = [
    "AnswerField",
    "Check",
    "Deduplicate",
    "Filter",
    "Generate",
    "PairLabels",
    "Pipeline",
    "Relabel",
    "Retrieve",
    "Several",
    "Step",
    "Write",
    "pipelines",
    "slots",
]

Option = str | int | float
_SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def slots(template: str) -> list[str]:
    """Return the names that stand in braces in a template; braces of JSON are none."""
    return _SLOT.findall(template)


class Several(Part):
    """Several options that are drawn at once, without one twice."""

    options: tuple[Option, ...] = Field(min_length=1)
    take: int = Field(gt=0, description="How many; they stand below each other.")


Draw = tuple[Option, ...] | Several


class AnswerField(Part):
    """One field of an answer that is JSON."""

    kind: Literal["text", "list", "number", "choice"] = "text"
    about: str = Field("", description="What the field holds, for the model.")
    choices: tuple[str, ...] = Field((), description="What a choice may be.")
    least: float | None = Field(None, description="Fewest words or entries, or lowest number.")
    most: float | None = Field(None, description="Most words or entries, or highest number.")

    @model_validator(mode="after")
    def _of_its_kind(self) -> AnswerField:
        if bool(self.choices) != (self.kind == "choice"):
            raise ValueError("choices are those of kind: choice, which needs some")
        if self.kind == "choice" and (self.least is not None or self.most is not None):
            raise ValueError("a choice is one of its choices; leave least and most out")
        return self


class Generate(Part):
    """Asks the language model, reads what it answers, and asks once more if that is no answer."""

    kind: Literal["generate"]
    name: Name = "generate"
    system: str | None = Field(None, description="The chat's system message.")
    prompt: str = Field(description="What is asked; {name} stands for a field of the item.")
    examples: tuple[dict[str, str], ...] = Field((), description="Few-shot examples.")
    example: str = Field("", description="How one example is written, for {examples}.")
    shots: int | None = Field(None, ge=0, description="Examples drawn for each item; None: all.")
    draw: dict[str, Draw] = Field(
        default_factory=dict, description="Fields that are drawn from options, by item and seed."
    )
    fields: dict[str, AnswerField] = Field(
        default_factory=dict, description="Fields of a JSON answer; none: the answer is a text."
    )
    into: str = Field("text", description="Field that takes the answer, or one entry of `each`.")
    each: str | None = Field(None, description="List of the answer whose entries become items.")
    samples: int = Field(1, gt=0, description="Times that each item is asked about.")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(512, gt=0, description="Doubled once for an answer cut off.")
    stop: str | None = Field(None, description="Text at which an answer ends.")
    plain: bool = Field(
        False,
        description="A model on this machine continues the prompt as plain text, without its chat "
        "template (few-shot prompts of small models); an endpoint is asked as always.",
    )
    logprobs: bool = Field(False, description="Keep the mean log-probability, as `logprob`.")

    @model_validator(mode="after")
    def _read_fields(self) -> Generate:
        if self.examples and not self.example:
            raise ValueError("examples are written by `example`, which is empty; give it")
        if self.each is not None and self.each not in self.fields:
            raise ValueError(f"each is {self.each!r}, which is none of the answer's fields")
        return self


class Check(Part):
    """Sets aside what is no use: refusals, copies, leaks, wrong lengths or languages."""

    kind: Literal["check"]
    name: Name = "check"
    fields: tuple[str, ...] = Field(min_length=1, description="Fields that are checked.")
    refusals: bool = Field(True, description="Refuse answers that decline the task.")
    words: tuple[int, int] | None = Field(None, description="Fewest and most words.")
    copies_of: tuple[str, ...] = Field((), description="Fields that they may not copy.")
    language: str | None = Field(None, description="Language that they must have; a template.")
    held_out: bool = Field(True, description="Refuse what the held-out texts (if any) hold.")


class Filter(Part):
    """Keeps the best items, or those good enough."""

    kind: Literal["filter"]
    name: Name = "filter"
    by: Literal["logprob", "reranker", "similarity", "round_trip", "field"]
    field: str = Field("score", description="By field: which number counts.")
    query: str = Field("{query}", description="A template.")
    passage: str = Field("{passage}", description="A template.")
    keep: int | None = Field(None, gt=0, description="Keep so many of the highest.")
    least: float | None = Field(None, description="Keep those of at least this.")
    rank: int | None = Field(None, gt=0, description="Round trip: the passage's rank at most.")

    @model_validator(mode="after")
    def _has_a_bound(self) -> Filter:
        trip = self.by == "round_trip"
        if trip and (self.rank is None or self.keep is not None or self.least is not None):
            raise ValueError("a round trip is kept by its rank: give rank, and no keep or least")
        if not trip and (self.rank is not None or (self.keep is None and self.least is None)):
            raise ValueError(f"by {self.by} needs keep or least, and takes no rank")
        if self.by != "field" and self.field != type(self).model_fields["field"].default:
            raise ValueError(f"field is the number of by: field, and by is {self.by!r}")
        return self


class Retrieve(Part):
    """Adds the passages that a search finds."""

    kind: Literal["retrieve"]
    name: Name = "retrieve"
    query: str = Field("{passage}", description="What is searched for; a template.")
    besides: str = Field("{passage}", description="The passage that is left out; a template.")
    first: int = Field(1, gt=0, description="Rank of the first that is taken.")
    count: int = Field(2, gt=0)
    into: str = Field("neighbours", description="Field that takes the list of texts.")


class Relabel(Part):
    """FRet: the language model ranks what a search finds; the best is the positive."""

    kind: Literal["relabel"]
    name: Name = "relabel"
    query: str = "{query}"
    passage: str = Field("{passage}", description="The seed, which is always a candidate.")
    candidates: int = Field(20, gt=1)
    rankers: tuple[Literal["likelihood", "relevance"], ...] = Field(
        ("likelihood", "relevance"), min_length=1
    )
    likelihood: str = Field("", description="Prompt whose continuation is the query: {candidate}.")
    relevance: str = Field("", description="Prompt that asks for a label: {query}, {candidate}.")
    labels: tuple[str, ...] = Field(("0", "1", "2", "3"), min_length=2, description="Worst first.")
    rrf_k: int = Field(60, gt=0)
    negative: Literal["last", "sample"] = "last"

    @model_validator(mode="after")
    def _asks(self) -> Relabel:
        for ranker in self.rankers:
            if not getattr(self, ranker):
                raise ValueError(f"rankers name {ranker}, and its prompt is empty; give {ranker}")
        return self


class Deduplicate(Part):
    """Drops near-duplicates over all items (MinHash), keeping the first."""

    kind: Literal["deduplicate"]
    name: Name = "deduplicate"
    text: str = Field("{query}", description="What is compared; a template.")
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity of word runs.")
    run: int = Field(2, gt=0, description="Words of a run.")


class PairLabels(Part):
    """Pairs texts of one label, with a text of another label as the negative (no model asked)."""

    kind: Literal["pair_labels"]
    name: Name = "pair_labels"
    text: str = "text"
    label: str = "label"


class Write(Part):
    """What of an item becomes a training record; each value is a template."""

    kind: Literal["write"]
    name: Name = "write"
    query: str = "{query}"
    positives: tuple[str, ...] = ("{passage}",)
    negatives: tuple[str, ...] = ()
    scores: tuple[str, ...] = Field((), description="Of the positives, then of the negatives.")
    instruction: str | None = None
    task: str | None = None
    language: str | None = None
    source: str | None = None
    others: dict[str, str] = Field(default_factory=dict, description="More fields of a record.")
    unique_ids: bool = Field(False, description="Write a record's id behind each text (Gecko).")


Step = Annotated[
    Generate | Check | Filter | Retrieve | Relabel | Deduplicate | PairLabels | Write,
    Field(discriminator="kind"),
]
_GIVEN = {
    "none": ("number",),
    "passages": ("passage", "passage_id"),
    "queries": ("query",),
    "records": ("query", "positive", "negative", "instruction"),
    "labels": ("text", "label"),
}
"""The fields of an item, by what a pipeline reads."""


class Pipeline(Part):
    """Everything that synthesis is told, but for the input and the models."""

    name: Name = "pipeline"
    summary: str = ""
    paper: str | None = None
    input: Literal["none", "passages", "queries", "records", "labels"] = "passages"
    draw: dict[str, Draw] = Field(
        default_factory=dict, description="Fields drawn for each item, for all steps."
    )
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Pipeline:
        names = [step.name for step in self.steps]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two steps are named {twice!r}; give each a name of its own")
        if [step.kind for step in self.steps].count("write") != 1 or names[-1:] != [
            step.name for step in self.steps if step.kind == "write"
        ]:
            raise ValueError("the last step, and no other, must be of the kind write")
        known = {"id", *_GIVEN[self.input], *self.draw}
        for step in self.steps:
            known |= _made_before(step)
            for template in _templates(step):
                for slot in slots(template):
                    if slot not in known and slot not in _own(step):
                        raise ValueError(
                            f"step {step.name!r}: {{{slot}}} is no field there; there are: "
                            f"{', '.join(sorted(known | _own(step)))}.{closest(slot, [*known])}"
                        )
            known |= _made(step)
        return self

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Pipeline) -> Pipeline:
        """Return the pipeline of that name, file or mapping.

        Raises:
            RecipeError: no such pipeline, or one with an unknown field or a value not allowed.
        """
        if isinstance(source, Pipeline):
            return source
        if isinstance(source, Mapping):
            return _shown(
                validated(cls, {"name": "custom", **source}, str(source.get("name", "custom")))
            )
        path = _file(source)
        data = {"name": path.stem, **read_mapping(path, "pipeline")}
        return _shown(validated(cls, data, path.name))

    @staticmethod
    def source(name: str | Path) -> str:
        """Return the YAML of a pipeline, comments and all; a broken one is refused first."""
        Pipeline.load(name)
        return _file(name).read_text(encoding="utf-8-sig")

    def override(self, changes: Mapping[str, Any]) -> Pipeline:
        """Return a copy with fields replaced, e.g. `{"steps.query.temperature": 0}`.

        A step is named by its name, its kind or its index.

        Raises:
            RecipeError: no such field, or a value that is not allowed.
        """
        data = self.model_dump(mode="json")
        for path, value in changes.items():
            set_path(data, str(path), value)
        return validated(Pipeline, data, self.name)


def _made_before(step: Any) -> set[str]:
    """Return the fields that a step draws before it asks."""
    return set(step.draw) if step.kind == "generate" else set()


def _made(step: Any) -> set[str]:
    """Return the fields that items have after a step."""
    if step.kind == "generate":
        return {step.into, *step.fields} | ({"logprob"} if step.logprobs else set())
    if step.kind == "relabel":
        return {"positive", "negative", "positive_id", "negative_id", "seed_rank"}
    if step.kind == "pair_labels":
        return {"positive", "negative"}
    return {step.into} if step.kind == "retrieve" else {"score"} if step.kind == "filter" else set()


def _own(step: Any) -> set[str]:
    """Return the slots that only a step itself fills."""
    if step.kind == "generate":
        example = {name for one in step.examples for name in one}
        return {"examples", "schema"} | example
    return {"candidate", "labels"} if step.kind == "relabel" else set()


def _templates(step: Any) -> Iterator[str]:
    """Yield all templates of a step."""
    for name, value in step:
        if name in ("kind", "name", "into", "each", "stop", "examples", "labels", "draw"):
            continue
        if step.kind == "check" and name != "language":
            yield from (f"{{{one}}}" for one in value) if name in ("fields", "copies_of") else ()
        elif step.kind == "filter" and name == "field":
            yield f"{{{value}}}" if step.by == "field" else ""
        elif step.kind == "pair_labels":
            yield f"{{{value}}}"
        elif isinstance(value, str):
            yield value
        elif isinstance(value, tuple):
            yield from (one for one in value if isinstance(one, str))
        elif isinstance(value, dict) and name == "others":
            yield from value.values()


def _shown(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline that was given; one with examples that no prompt shows is refused.

    Raises:
        RecipeError: names the step.
    """
    for step in pipeline.steps:
        shows = step.kind == "generate" and "examples" in slots(f"{step.system or ''}{step.prompt}")
        if step.kind == "generate" and step.examples and not shows:
            raise RecipeError(
                f"{pipeline.name}: step {step.name!r} has examples, and its prompt no {{examples}} "
                "where they are shown; add it, or leave examples out"
            )
    return pipeline


_FOLDER = "synthesis/pipelines"


def _file(source: str | Path) -> Path:
    """Return the file of a pipeline's name, or the file itself."""
    if str(source) in pipelines():
        return Path(str(files("embedlm"))) / _FOLDER / f"{source}.yaml"
    path = usable_path(source, RecipeError)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise RecipeError(
            f"{str(source)!r} is no pipeline and no .yaml file; there are: "
            f"{', '.join(pipelines())}.{closest(str(source), pipelines())}"
        )
    return path


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    folder = Path(str(files("embedlm"))) / _FOLDER
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def pipelines() -> list[str]:
    """Return the names of the built-in pipelines."""
    return list(_names())
