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
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator

from embedlm.errors import RecipeError, closest
from embedlm.schema.arguments import usable_path
from embedlm.schema.base import Name, Part, set_path, validated
from embedlm.schema.heads import (
    SEGMENTS,
    Dense,
    Head,
    MultiVector,
    Over,
    Sparse,
    dump_head,
    head_schema,
    parse_head,
)
from embedlm.schema.image import Image
from embedlm.schema.prompt import Expansion, Message, Prompt, Template
from embedlm.schema.tuning import Tuning
from embedlm.schema.unread import check_given, given_paths
from embedlm.schema.yaml_files import read_mapping, written

__all__ = [
    "POOLINGS",
    "SEGMENTS",
    "Backbone",
    "Dense",
    "Expansion",
    "Head",
    "Image",
    "Latent",
    "Message",
    "MultiVector",
    "Pooling",
    "Prompt",
    "Recipe",
    "Sparse",
    "Template",
    "Transform",
    "parse_head",
    "recipes",
]

_SAVED = "embedlm.yaml"
"""A model's own recipe: saved with what it was changed from, and not given."""
Boundary = Literal[
    "offsets",
    "count_prefix",
    "count_prefix_bare",
    "count_instruction",
    "count_prompt",
    "count_text",
]
Layer = int | Annotated[float, Field(gt=0, lt=1)]
PoolingKind = Literal["last", "mean", "weighted_mean", "cls", "max", "mean_sqrt_length"]
POOLINGS: tuple[str, ...] = get_args(PoolingKind)
"""Names of the functions in `embedlm.readout.pooling`; one line there, one name here."""


class Backbone(Part):
    """Which network makes the token states, and what a token may see."""

    base: str | None = Field(None, description="Hub id of the base model the system was made from.")
    kind: Literal["transformer", "static", "towers"] = Field(
        "transformer",
        description="static: the input embedding table alone, no layers; towers: a network for "
        "texts and one for images, into one space (CLIP, SigLIP).",
    )
    attention: Literal["causal", "bidirectional", "native"] = Field(
        "native", description="native: as the checkpoint's own config says."
    )
    adapters: tuple[str, ...] = Field((), description="Adapter folders or hub ids, in order.")
    merge: bool = Field(True, description="Merge the adapters; else they stay switchable.")
    adapter_roles: dict[str, Name] = Field(
        default_factory=dict,
        description="Which switchable adapter serves a role; `default` serves no role.",
    )
    sliding_window: Literal["keep", "off"] | PositiveInt = Field(
        "keep", description="Keep, switch off or set the width of sliding-window layers."
    )


class Latent(Part):
    """Latent attention between the token states and their pooling (NV-Embed)."""

    latents: int = Field(512, gt=0, le=65_536, description="Rows of the trained dictionary.")
    heads: int = Field(8, gt=0, le=1024)
    head_width: int | None = Field(None, gt=0, le=65_536, description="None: the width of a state.")
    seed: int = Field(
        0, ge=0, lt=1 << 63, description="Of the weights where the checkpoint has none."
    )


class Pooling(Part):
    """How token states become one vector."""

    kind: PoolingKind | Annotated[tuple[PoolingKind, ...], Field(min_length=1)] = Field(
        "last", description="How; of several, the vectors are joined, one after another."
    )
    over: Over = Field("all", description="The segments that are pooled.")
    boundary: Boundary = Field(
        "offsets",
        description="How the first pooled token is found: by character offsets; by counting the "
        "tokens of what stands before the text (count_prefix_bare: without BOS, so that its last "
        "token is pooled; count_instruction: white space around it left out, a single token not "
        "counted; count_prompt: all special tokens after it are pooled with the text, and those "
        "before it too where nothing stands before the text, and weighted_mean counts places from "
        "the row's first token); or by counting the text's own from the end (count_text).",
    )
    layer: Layer | Annotated[tuple[Layer, ...], Field(min_length=1)] = Field(
        -1,
        description="Index into the hidden states (0: embeddings, -1: last, after the final "
        "norm, -2: last but one, without it), or a number between 0 and 1: the share of the "
        "layers below it (0.4 of 30 layers: 12); several are averaged.",
    )
    exclude_sink: bool | Literal["norm", "bos"] = Field(
        False,
        description="Leave attention sinks out of mean, weighted_mean, mean_sqrt_length and max "
        "(last and cls keep their token). norm, or true: tokens whose state is 4 times as long as "
        "a typical one of the layers that are read, which is measured at load. bos: each row's "
        "first token, a BOS or not. A text without any other token keeps them.",
    )
    skip: tuple[str, ...] = Field(
        (), description="Tokens left out of a mean (model2vec's unknown token)."
    )
    empty: Literal["last", "zero"] = Field(
        "last",
        description="What a prompt without a token to pool gives: the state of its last token (of "
        "one that stands for nothing), or zeros.",
    )
    weights: Literal["none", "idf", "sif"] = Field(
        "none", description="Token weights from corpus frequencies (see Embedder.fit)."
    )
    sif_a: float = Field(1e-3, gt=0, description="SIF's smoothing constant a in a / (a + p(w)).")
    latent: Latent | None = Field(
        None, description="Token states pass through latent attention before they are pooled."
    )
    denoise: bool = Field(
        False,
        description="Take the state of the same prompt without its text, in the same places, out "
        "of each vector (PromptBERT's template denoising).",
    )
    remove_components: int = Field(
        0, ge=0, description="Principal components of the fitted corpus taken out of each vector."
    )

    @field_validator("layer", mode="before")
    @classmethod
    def _share_of_layers(cls, value: Any) -> Any:
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, float) and not 0 < one < 1:
                raise ValueError(
                    "a share of the layers lies between 0 and 1; an index is a whole number"
                )
        return value

    @field_validator("exclude_sink")
    @classmethod
    def _sink_by_norm(cls, value: bool | str) -> bool | str:
        return "norm" if value is True else value

    @model_validator(mode="after")
    def _a_plain_mean_to_skip_in(self) -> Pooling:
        if self.skip and (self.kind, self.weights) != ("mean", "none"):
            raise ValueError("skip leaves tokens out of kind: mean with weights: none alone")
        return self

    @property
    def gathers(self) -> bool:
        """Whether some of it is made of several tokens, so that a sink can spoil it."""
        kinds = (self.kind,) if isinstance(self.kind, str) else self.kind
        return not {*kinds} <= {"last", "cls"}

    @property
    def reads_statistics(self) -> bool:
        """Whether a vector depends on what was learnt from a corpus."""
        return self.weights != "none" or self.remove_components > 0


class Transform(Part):
    """Texts written anew by a language model before embedding (GenEOL)."""

    kind: Literal["geneol"] = "geneol"
    per_prompt: int = Field(1, gt=0, description="Variants for each of the four prompts.")
    compositional: bool = Field(False, description="Summarise every variant once more.")
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(96, gt=0)
    demonstrations: int = Field(5, ge=0, le=10, description="Examples shown for each prompt.")
    seed: int = 0


class Recipe(Part):
    """Backbone, prompt, pooling, heads and (optionally) tuning of one system."""

    name: Name = Field(description="Lower case, words joined by hyphens.")
    summary: str = Field("", description="One line: what it does.")
    paper: str | None = Field(None, description="Where it was published.")
    citation: str | None = Field(None, description="Authors, title, year.")
    section: str | None = Field(None, description="Where the survey treats it.")
    checkpoints: tuple[str, ...] = Field((), description="Hub ids of published checkpoints.")
    backbone: Backbone = Backbone()
    prompt: Prompt = Prompt()
    image: Image = Image()
    pooling: Pooling = Pooling()
    heads: tuple[Head, ...] = (Dense(),)
    normalize: bool = Field(False, description="L2-normalise dense vectors.")
    dim: PositiveInt | None = Field(
        None, description="Dense vectors are cut to this width unless a call says another."
    )
    renormalize: bool = Field(
        True, description="With normalize: vectors that are cut are L2-normalised again."
    )
    similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine"
    transform: Transform | None = None
    tuning: Tuning | None = None
    notes: str | None = Field(None, description="What a user should know before using it.")

    @field_validator("heads", mode="before")
    @classmethod
    def _heads(cls, value: Any) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        heads = tuple(parse_head(head) for head in values)
        kinds = [head.kind for head in heads]
        if not kinds or len(set(kinds)) < len(kinds):
            raise RecipeError(f"heads: give each head once, and at least one (given {value!r})")
        return heads

    @model_validator(mode="after")
    def _adapters_of_known_roles(self) -> Recipe:
        self.prompt.check_roles("backbone.adapter_roles", self.backbone.adapter_roles)
        return self

    @model_validator(mode="after")
    def _one_pooled_state(self) -> Recipe:
        reads = [head for head in self.heads if isinstance(head, Sparse) and head.reduce == "pool"]
        if reads and not isinstance(self.pooling.kind, str):
            raise RecipeError(
                f"heads.sparse.reduce: pool reads one pooled state, and pooling.kind joins "
                f"{', '.join(self.pooling.kind)}; name one, or reduce otherwise"
            )
        return self

    @model_validator(mode="after")
    def _a_sink_to_exclude(self) -> Recipe:
        pooling = self.pooling
        if not pooling.exclude_sink:
            return self
        problem = None
        if not pooling.gathers:
            problem = f"pooling.kind {pooling.kind!r} reads single tokens and takes no mean"
        elif self.backbone.kind == "static":
            problem = "backbone.kind: static has no attention, and so no sink"
        elif not any(_pools(head) for head in self.heads):
            problem = "its heads read single tokens, of which none is left out"
        if problem is not None:
            raise RecipeError(
                f"pooling.exclude_sink is {pooling.exclude_sink!r}, and {problem}; leave it out, "
                "or pool by mean, weighted_mean, mean_sqrt_length or max"
            )
        return self

    @classmethod
    def load(cls, source: str | Path | Mapping[str, Any] | Recipe) -> Recipe:
        """Return the recipe of that name, file, folder or mapping.

        Raises:
            RecipeError: no such recipe, or one with an unknown field, a value not allowed, or
                (but in a model's own file) one that has no effect.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return cls._given(source, "custom", str(source.get("name", "custom")))
        if not isinstance(source, str | Path):
            raise RecipeError(
                f"{source!r} is no recipe: give a name, a file, a mapping or a Recipe"
            )
        source = ALIASES.get(str(source), source)
        if source in recipes():  # before the folders: one may have the same name
            return cls._from_file(Path(str(files("embedlm"))) / "recipes" / f"{source}.yaml")
        path = usable_path(source, RecipeError)
        path = path / _SAVED if str(source) and path.is_dir() else path
        if path.name == _SAVED:
            return cls._from_file(path)
        if path.suffix in {".yaml", ".yml", ".json"}:
            return cls._given(read_mapping(path, "recipe"), path.stem, path.name)
        raise RecipeError(
            f"{str(source)!r} is no recipe and no .yaml file.{closest(str(source), recipes())} "
            f"Run `embedlm recipes` for the list of {len(recipes())}."
        )

    @classmethod
    def _from_file(cls, path: Path) -> Recipe:
        data = read_mapping(path, "recipe")
        return validated(cls, {"name": path.stem, **data}, path.name)

    @classmethod
    def _given(cls, data: Mapping[str, Any], name: str, where: str) -> Recipe:
        recipe = validated(cls, {"name": name, **data}, where)
        check_given(recipe, given_paths(data), where)
        return recipe

    def override(self, changes: Mapping[str, Any]) -> Recipe:
        """Return a copy with fields replaced, e.g. `{"pooling.kind": "mean"}`.

        An entry of a list is named by its kind, its name or its index: `heads.sparse.top_k`.

        Raises:
            RecipeError: an unknown field, a value that is not allowed, or one without effect.
        """
        if not isinstance(changes, Mapping):
            raise RecipeError(f"changes is {changes!r}; give a mapping of fields to values")
        data = self.model_dump(mode="json")
        for path, value in changes.items():
            plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            set_path(data, str(path), plain)
        recipe = validated(Recipe, data, self.name)
        check_given(recipe, map(str, changes), self.name)
        return recipe

    def gives_vectors_of(self, other: Recipe) -> bool:
        """Tell whether both give the same dense vectors, but for their length and cut texts."""
        a, b = (
            (
                [head for head in recipe.heads if head.kind == "dense"],
                recipe.prompt.model_copy(update={"max_length": None}),
                (recipe.backbone, recipe.image, recipe.pooling, recipe.transform),
            )
            for recipe in (self, other)
        )
        return a == b

    def within(self, limit: int | None) -> Recipe:
        """Return the recipe for a model that asks for at most so many tokens.

        A method's own `max_length` is that of the model it was published with. A limit that counts
        pieces, or the text alone, is not one of the model's input.
        """
        lengths = self.prompt.max_length
        if limit is None or lengths is None or self.prompt.truncate in ("slot", "pieces"):
            return self
        if isinstance(lengths, dict):
            shorter: Any = {role: min(length, limit) for role, length in lengths.items()}
        else:
            shorter = min(lengths, limit)
        return self if shorter == lengths else self.override({"prompt.max_length": shorter})

    def dump(self) -> str:
        """Return the recipe as YAML, without fields that hold their default."""
        data = json.loads(self.model_dump_json(exclude_defaults=True))
        data["heads"] = [dump_head(head) for head in self.heads]
        return written(data)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of a recipe file, for editors."""
        schema = cls.model_json_schema()
        del schema["required"]  # a file without a name is called by its own
        schema["properties"]["heads"] = head_schema()
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _pools(head: Head) -> bool:
    """Tell whether a head reads what the pooling gathers."""
    return isinstance(head, Dense) or (isinstance(head, Sparse) and head.weights == "lm_head")


ALIASES = {"echo-mean": "echo"}
"""Other names that built-in recipes go by."""


@lru_cache(maxsize=1)
def _names() -> tuple[str, ...]:
    folder = files("embedlm") / "recipes"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")))


def recipes() -> list[str]:
    """Return the names of the built-in recipes."""
    return list(_names())
