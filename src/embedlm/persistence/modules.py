"""The two-way table of module types: what stands in modules.json, and each module's config.json.

A new module type is one entry of MODULES, and one case in the tests. What a key means was read in
sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from embedlm.errors import UnsupportedError
from embedlm.persistence.settings import (
    FLAG,
    NOTHING,
    TEXT,
    TEXTS,
    Draft,
    Outline,
    Setting,
    Values,
    keep,
    one_of,
)
from embedlm.schema.heads import Sparse
from embedlm.schema.recipe import Recipe

__all__ = ["AFTER_PROMPT", "MODULES", "POOLINGS", "Module", "leaves_prompt_out"]

DENSE = "sentence_transformers.models."
SPARSE = "sentence_transformers.sparse_encoder.models."


@dataclass(frozen=True, slots=True)
class Module:
    """One type of modules.json."""

    kind: str
    """The last part of the type's name."""
    settings: tuple[Setting, ...] = ()
    """Keys of its config.json."""
    read: Callable[[Draft], None] = lambda draft: None
    """Called once its settings are read."""
    package: str = DENSE
    """What stands before the type's name where it is written."""


POOLINGS = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "max": ("max", "pooling_mode_max_tokens"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}
"""Poolings here; there, in version 6; and the flags of the versions before, which are written."""
_POOLING_NAMES = {names[0]: kind for kind, names in POOLINGS.items()}
AFTER_PROMPT = ("special", "text", "eos")
"""The segments that are pooled where the prompt is left out (`boundary: count_prompt`)."""


def leaves_prompt_out(recipe: Recipe) -> bool:
    """Tell whether a recipe pools as sentence-transformers under `include_prompt: false`."""
    pooling = recipe.pooling
    return pooling.boundary == "count_prompt" and set(pooling.over) == set(AFTER_PROMPT)


MODES = Values(
    f"one of {', '.join(_POOLING_NAMES)}, or a list of these",
    lambda value: TEXT.fit(value) or TEXTS.fit(value),
)


def _read_mode(draft: Draft, value: Any) -> None:
    names = [value] if isinstance(value, str) else value
    draft.facts["poolings"] = [_POOLING_NAMES.get(name, name) for name in names]


def _read_flag(kind: str) -> Callable[[Draft, bool], None]:
    def read(draft: Draft, value: bool) -> None:
        if value:
            draft.facts.setdefault("flags", []).append(kind)

    return read


def _write_flag(kind: str) -> Callable[[Outline], bool]:
    return lambda outline: outline.recipe.pooling.kind == kind


def _read_include_prompt(draft: Draft, value: bool) -> None:
    if not value:
        draft.changes |= {"pooling.over": list(AFTER_PROMPT), "pooling.boundary": "count_prompt"}


def _read_pooling(draft: Draft) -> None:
    kinds = draft.facts.get("poolings") or draft.facts.get("flags") or ["mean"]
    if len(kinds) != 1 or kinds[0] not in POOLINGS:
        raise UnsupportedError(
            f"{draft.folder} pools by {', '.join(kinds)}; EmbedLM takes one of "
            f"{', '.join(POOLINGS)}. Give recipe= to say how to pool"
        )
    if draft.stages.count("Pooling") > 1:
        raise UnsupportedError(f"{draft.folder} pools twice; give recipe= to say how to pool")
    draft.changes["pooling.kind"] = kinds[0]


def _read_dense(draft: Draft) -> None:
    tokens = draft.facts.get("late_interaction", False)
    if "Normalize" in draft.stages or (not tokens and "Pooling" not in draft.stages):
        raise UnsupportedError(
            f"{draft.folder} has a Dense module that does not stand right after the pooling; give "
            "recipe= to say what to do"
        )
    if not tokens:
        draft.changes["heads"] = [{"dense": {"projection": "auto"}}]


def _read_normalize(draft: Draft) -> None:
    if not draft.facts.get("late_interaction"):
        draft.changes["normalize"] = True


def _read_splade(draft: Draft) -> None:
    options = {"reduce": draft.facts.get("pooling_strategy", "max")}
    draft.changes["heads"] = [{"sparse": options}]
    draft.changes.setdefault("similarity", "dot")


def _sparse(recipe: Recipe) -> Sparse:
    return next(head for head in recipe.heads if isinstance(head, Sparse))


_VECTORS = one_of("sentence_embedding", "token_embeddings")
_WIDTHS = ("word_embedding_dimension", "embedding_dimension")

MODULES = {
    module.kind: module
    for module in (
        Module("Transformer"),
        Module("MLMTransformer", package=SPARSE),
        Module(
            "Pooling",
            (
                Setting(_WIDTHS[0], write=lambda outline: outline.width),
                Setting(_WIDTHS[1]),
                Setting("include_prompt", FLAG, _read_include_prompt, lambda o: _includes(o)),
                Setting("pooling_mode", MODES, _read_mode),
                *(
                    Setting(flag, FLAG, _read_flag(kind), _write_flag(kind))
                    for kind, (_, flag) in POOLINGS.items()
                ),
                Setting("pooling_mode_mean_sqrt_len_tokens", one_of(False)),
            ),
            _read_pooling,
        ),
        Module(
            "Dense",
            (
                # The weights' reader takes these.
                *map(Setting, ("in_features", "out_features", "bias", "activation_function")),
                Setting("use_residual"),
                Setting("module_input_name", _VECTORS),
                Setting("module_output_name", _VECTORS),
            ),
            _read_dense,
        ),
        Module(
            "Normalize",
            (Setting("module_input_name", _VECTORS), Setting("module_output_name", _VECTORS)),
            _read_normalize,
        ),
        Module("Dropout", (Setting("dropout"),)),
        Module(
            "SpladePooling",
            (
                Setting(
                    "pooling_strategy",
                    one_of("max", "sum"),
                    keep("pooling_strategy"),
                    lambda o: "sum" if _sparse(o.recipe).reduce == "sum" else "max",
                ),
                Setting("activation_function", one_of("relu"), write=lambda outline: "relu"),
                Setting(_WIDTHS[0], write=lambda outline: outline.vocabulary),
                Setting(_WIDTHS[1]),
                Setting("chunk_size"),
            ),
            _read_splade,
            SPARSE,
        ),
        Module(
            "MultiVectorMask",
            (
                Setting("skiplist_words", TEXTS, keep("skip")),
                Setting("skiplist_tasks", one_of(["document"], "document")),
                Setting("keep_only_token_ids", NOTHING),
            ),
        ),
    )
}
"""The module types that a recipe can express."""


def _includes(outline: Outline) -> bool:
    return outline.recipe.pooling.over == "all"
