"""A recipe: one system of the field as data.

A recipe is enough to load a system's published checkpoint, to apply its method to another model and
to train it again. It is a YAML file validated here; unknown fields are errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from embedlm._tuning_schema import Tuning
from embedlm.errors import RecipeError, closest

__all__ = [
    "POOLINGS",
    "SEGMENTS",
    "Backbone",
    "Dense",
    "Message",
    "MultiVector",
    "Pooling",
    "Prompt",
    "Recipe",
    "Sparse",
    "Transform",
    "recipes",
]

PoolingKind = Literal["last", "mean", "weighted_mean", "cls", "max"]
POOLINGS: tuple[str, ...] = get_args(PoolingKind)
"""Names of the functions in `embedlm.pooling`; one line there, one name here."""

SegmentName = Literal[
    "special", "literal", "instruction", "demonstrations", "text", "repeat", "eos", "mask"
]
SEGMENTS: tuple[str, ...] = get_args(SegmentName)
"""What a token can belong to; `repeat` is the second (or later) `{text}` of a template."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Backbone(_Part):
    """Which network makes the token states, and what a token may see."""

    base: str | None = Field(None, description="Hub id of the base model the system was made from.")
    kind: Literal["transformer", "static"] = Field(
        "transformer", description="static: the input embedding table alone, no layers."
    )
    attention: Literal["causal", "bidirectional", "native"] = Field(
        "native", description="native: as the checkpoint's own config says."
    )
    adapters: tuple[str, ...] = Field((), description="Adapter folders or hub ids, in order.")
    sliding_window: Literal["keep", "off"] | int = Field(
        "keep", description="Keep, switch off or set the width of sliding-window layers."
    )


class Message(_Part):
    """One turn of a chat prompt. A last turn by the assistant is continued, not closed."""

    role: Literal["system", "user", "assistant"]
    content: str


Template = str | tuple[Message, ...] | tuple[str, ...]
"""One template, one chat, or several templates whose vectors are averaged."""


class Prompt(_Part):
    """What the model sees around a text."""

    default: Template | None = Field(None, description="Template without a role.")
    query: Template | None = Field(None, description="Template of role `query`.")
    document: Template | None = Field(None, description="Template of role `document`.")
    roles: dict[str, Template] = Field(
        default_factory=dict, description="Templates of further roles, by name."
    )
    instruction: str | dict[str, str] | None = Field(
        None, description="Fills {instruction}; one for all roles, or by role."
    )
    demonstration: str | None = Field(
        None, description="Template of one demonstration: {instruct}, {query}, {response}."
    )
    demonstrations: tuple[dict[str, str], ...] = Field(
        (), description="Default demonstrations; each fills `demonstration`."
    )
    separator: str = Field("", description="Written after each demonstration.")
    clean: Literal["none", "strip", "promptbert", "prompteol"] = Field(
        "none",
        description="Text clean-up before the template; promptbert: a full stop where none is; "
        "prompteol: also quotes to apostrophes and a final ? to a full stop.",
    )
    tokenize: Literal["joined", "pieces"] = Field(
        "joined", description="Tokenise the joined string, or each segment alone."
    )
    special_tokens: Literal["tokenizer", "none"] = Field(
        "tokenizer", description="Whether the tokenizer adds its own (BOS, CLS, SEP, EOS)."
    )
    truncate: Literal["text", "slot", "pieces", "end"] = Field(
        "text",
        description="text: shorten the text until all fits max_length; slot: max_length counts "
        "the text alone; pieces: every segment is cut to max_length; end: cut the rendered end.",
    )
    max_length: int | dict[str, int] | None = Field(
        None, description="In tokens; one for all roles, or by role. None: the model's own."
    )
    aggregate: Literal["mean"] = Field("mean", description="How several templates become one.")

    @field_validator("clean", mode="before")
    @classmethod
    def _clean_flag(cls, value: Any) -> Any:
        return {True: "prompteol", False: "none", None: "none"}.get(value, value)

    @field_validator("default", "query", "document", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value


class Pooling(_Part):
    """How token states become one vector."""

    kind: PoolingKind = "last"
    over: Literal["all"] | tuple[SegmentName, ...] = Field(
        "all", description="The segments that are pooled."
    )
    boundary: Literal["offsets", "count_prefix", "count_text"] = Field(
        "offsets",
        description="How the first pooled token is found: by character offsets, by counting the "
        "tokens of what stands before the text, or by counting the text's own from the end.",
    )
    layer: int | tuple[int, ...] = Field(
        -1,
        description="Index into the hidden states (0: embeddings, -1: last, after the final "
        "norm, -2: last but one, without it); several are averaged.",
    )
    weights: Literal["none", "idf", "sif"] = Field(
        "none", description="Token weights from corpus frequencies (see Embedder.fit)."
    )
    sif_a: float = Field(1e-3, gt=0, description="SIF's smoothing constant a in a / (a + p(w)).")
    remove_components: int = Field(
        0, ge=0, description="Principal components of the fitted corpus taken out of each vector."
    )

    @field_validator("over", mode="before")
    @classmethod
    def _one_segment(cls, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        return (value,) if isinstance(value, str) and value in SEGMENTS else value


class Dense(_Part):
    """One vector a text."""

    kind: Literal["dense"] = "dense"


class Sparse(_Part):
    """Weights over the vocabulary: log(1 + relu(logits)) of the language-model head."""

    kind: Literal["sparse"] = "sparse"
    top_k: int | None = Field(None, gt=0, description="Keep the largest k weights.")
    restrict: Literal["none", "text"] = Field(
        "none", description="text: only tokens of the text's own words (PromptReps)."
    )
    stop_words: Literal["short", "english", "none"] = Field(
        "short", description="With restrict text: the list of words left out (heads/words.py)."
    )
    reduce: Literal["pool", "last", "max", "sum"] = Field(
        "max", description="pool: logits of the pooled state; else over the pooled tokens."
    )
    fallback_top_k: int = Field(
        10, gt=0, description="With restrict text: weights kept when the text has no valid word."
    )
    expand: int = Field(
        0, ge=0, description="With restrict text: best other word-like tokens added."
    )

    @field_validator("restrict", mode="before")
    @classmethod
    def _no_restriction(cls, value: Any) -> Any:
        return "none" if value is None else value


class MultiVector(_Part):
    """One vector a token, for late interaction."""

    kind: Literal["multi_vector"] = "multi_vector"
    over: Literal["all"] | tuple[SegmentName, ...] = Field(
        "all", description="The segments whose states are kept."
    )
    normalize: bool = True

    @field_validator("over", mode="before")
    @classmethod
    def _segments(cls, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        return (value,) if isinstance(value, str) and value in SEGMENTS else value


Head = Dense | Sparse | MultiVector
_HEADS: dict[str, type[Dense] | type[Sparse] | type[MultiVector]] = {
    "dense": Dense,
    "sparse": Sparse,
    "multi_vector": MultiVector,
}


class Transform(_Part):
    """Texts written anew by a language model before embedding (GenEOL)."""

    kind: Literal["geneol"] = "geneol"
    per_prompt: int = Field(1, gt=0, description="Variants for each of the four prompts.")
    compositional: bool = Field(False, description="Summarise every variant once more.")
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(96, gt=0)
    demonstrations: int = Field(5, ge=0, le=10, description="Examples shown for each prompt.")
    seed: int = 0


def parse_head(value: str | Mapping[str, Any] | Head, base: tuple[Head, ...] = ()) -> Head:
    """Return the head that a name or `{name: options}` asks for, on top of the recipe's own."""
    if isinstance(value, Dense | Sparse | MultiVector):
        return value
    if isinstance(value, str):
        name, options = value, {}
    elif "kind" in value:
        name, options = str(value["kind"]), {k: v for k, v in value.items() if k != "kind"}
    elif len(value) == 1:
        name, options = next(iter(value.items()))
    else:
        raise RecipeError(f"heads: {value!r} is not a name or {{name: options}}")
    if name not in _HEADS:
        raise RecipeError(
            f"heads: {name!r} is not a head; allowed: {', '.join(_HEADS)}."
            + closest(name, list(_HEADS))
        )
    own = next((h.model_dump() for h in base if h.kind == name), {})
    return _validated(_HEADS[name], {**own, **(options or {})}, f"heads.{name}")


class Recipe(_Part):
    """Backbone, prompt, pooling, heads and (optionally) tuning of one system."""

    name: str = Field(description="Lower case, words joined by hyphens.")
    summary: str = Field("", description="One line: what it does.")
    paper: str | None = Field(None, description="Where it was published.")
    citation: str | None = Field(None, description="Authors, title, year.")
    section: str | None = Field(None, description="Where the survey treats it.")
    checkpoints: tuple[str, ...] = Field((), description="Hub ids of published checkpoints.")
    backbone: Backbone = Backbone()
    prompt: Prompt = Prompt()
    pooling: Pooling = Pooling()
    heads: tuple[Head, ...] = (Dense(),)
    normalize: bool = Field(False, description="L2-normalise dense vectors.")
    similarity: Literal["cosine", "dot"] = "cosine"
    transform: Transform | None = None
    tuning: Tuning | None = None
    notes: str | None = Field(None, description="What a user should know before using it.")

    @field_validator("heads", mode="before")
    @classmethod
    def _heads(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str | dict) else value
        return tuple(parse_head(head) for head in values)

    @model_validator(mode="after")
    def _templates(self) -> Recipe:
        from embedlm.prompt.template import check_prompt

        check_prompt(self.prompt)
        return self

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """Return the recipe of that name, file, folder or mapping.

        Raises:
            RecipeError: no such recipe, or one with an unknown field or a value not allowed.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return _validated(cls, dict(source), str(source.get("name", "recipe")))
        path = Path(source)
        if path.is_dir():
            path = path / "embedlm.yaml"
        if path.suffix in {".yaml", ".yml", ".json"}:
            return cls._from_file(path)
        if str(source) not in recipes():
            raise RecipeError(
                f"{str(source)!r} is no recipe and no .yaml file.{closest(str(source), recipes())} "
                f"Run `embedlm recipes` for the list of {len(recipes())}."
            )
        return cls._from_file(Path(str(files("embedlm"))) / "recipes" / f"{source}.yaml")

    @classmethod
    def _from_file(cls, path: Path) -> Recipe:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {str(path)!r}: {error}") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{path.name} is not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise RecipeError(f"{path.name} holds {type(data).__name__}, not a mapping of fields")
        return _validated(cls, {"name": path.stem, **data}, path.name)

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """Return a copy with fields replaced, e.g. `{"pooling.kind": "mean"}`."""
        data = self.model_dump(mode="json")
        for key, value in changes.items():
            *parents, last = key.split(".")
            node = data
            for parent in parents:
                child = node.get(parent)
                node[parent] = child = {} if child is None else child
                if not isinstance(child, dict):
                    raise RecipeError(f"{key!r}: {parent!r} has no fields below it")
                node = child
            if isinstance(value, BaseModel):
                value = value.model_dump(mode="json")
            node[last] = value
        return _validated(Recipe, data, self.name)

    def dump(self) -> str:
        """Return the recipe as YAML, without fields that hold their default."""
        data = json.loads(self.model_dump_json(exclude_defaults=True))
        data["heads"] = [_head_entry(head) for head in self.heads]
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of a recipe file, for editors."""
        schema = cls.model_json_schema()
        heads = schema["properties"]["heads"]
        names: dict[str, Any] = {"enum": list(_HEADS)}
        heads["items"] = {"anyOf": [names, {"type": "object"}]}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _head_entry(head: Head) -> Any:
    options = json.loads(head.model_dump_json(exclude_defaults=True))
    return {head.kind: options} if options else head.kind


def _validated(cls: type[Any], data: dict[str, Any], where: str) -> Any:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        lines = [_explain(cls, issue) for issue in error.errors(include_url=False)]
        raise RecipeError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from error


def _explain(cls: type[BaseModel], issue: Any) -> str:
    place = ".".join(str(part) for part in issue["loc"]) or cls.__name__
    given = repr(issue["input"])
    given = given if len(given) <= 80 else given[:77] + "..."
    if issue["type"] == "extra_forbidden":
        allowed = _fields(cls, issue["loc"][:-1])
        hint = closest(str(issue["loc"][-1]), allowed)
        return f"{place}: unknown field (value {given}); allowed here: {', '.join(allowed)}.{hint}"
    return f"{place}: {issue['msg']} (given {given})"


def _fields(cls: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the field names of the model that `loc` leads to."""
    model: Any = cls
    for part in loc:
        annotation = getattr(model, "model_fields", {}).get(part)
        options = getattr(annotation, "annotation", None)
        candidates = [options, *getattr(options, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        model = found[0] if found else model
    return list(model.model_fields)


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    folder = files("embedlm") / "recipes"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")))


def recipes() -> list[str]:
    """Return the names of the built-in recipes."""
    return list(_names())
