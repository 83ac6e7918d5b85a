"""The two-way table of module types: what stands in modules.json, and each module's config.json.

A new module type is one entry of MODULES, and one case in the tests. What a key means was read in
sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from embedlm.backbone.tensors import read_tensors
from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import optional_json
from embedlm.persistence.settings import (
    COUNT,
    FLAG,
    FROM_ZERO,
    NOTHING,
    SHARE,
    TEXT,
    TEXTS,
    Draft,
    Outline,
    Setting,
    Values,
    keep,
    one_of,
)
from embedlm.readout.pooling import kinds_of
from embedlm.schema.heads import Sparse
from embedlm.schema.recipe import Recipe

__all__ = [
    "AFTER_PROMPT",
    "INPUTS",
    "MODULES",
    "POOLINGS",
    "REFUSED",
    "WIDTHS",
    "Module",
    "leaves_prompt_out",
]

INPUTS = ("Transformer", "MLMTransformer", "StaticEmbedding", "SparseStaticEmbedding")
"""The modules that read a text: a network, or a table of its tokens' rows."""
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
    needs: tuple[tuple[str, ...], ...] | None = None
    """Keys that its config.json must have, each under one of several names; None: the file may be
    missing."""


POOLINGS = {
    "cls": ("cls", "pooling_mode_cls_token"),
    "max": ("max", "pooling_mode_max_tokens"),
    "mean": ("mean", "pooling_mode_mean_tokens"),
    "mean_sqrt_length": ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    "weighted_mean": ("weightedmean", "pooling_mode_weightedmean_tokens"),
    "last": ("lasttoken", "pooling_mode_lasttoken"),
}
"""Poolings here; there, in version 6; and the flags of the versions before, which are written.

Flags join several poolings in this order."""
_POOLING_NAMES = {names[0]: kind for kind, names in POOLINGS.items()}
AFTER_PROMPT = ("special", "text", "eos")
"""The segments that are pooled where the prompt is left out (`boundary: count_prompt`)."""


def leaves_prompt_out(recipe: Recipe) -> bool:
    """Tell whether a recipe pools as sentence-transformers under `include_prompt: false`."""
    pooling = recipe.pooling
    return pooling.boundary == "count_prompt" and set(pooling.over) == set(AFTER_PROMPT)


MODES = Values(
    f"one of {', '.join(_POOLING_NAMES)}, or a list of these",
    lambda value: all(one in _POOLING_NAMES for one in _listed(value)) and value != [],
)


def _listed(value: Any) -> list[Any]:
    """Return a list of strings; what is neither a string nor such a list gives [None]."""
    if TEXT.fit(value):
        return [value]
    return list(value) if TEXTS.fit(value) else [None]


def _read_mode(draft: Draft, value: Any) -> None:
    draft.facts["poolings"] = [_POOLING_NAMES[name] for name in _listed(value)]


def _write_mode(outline: Outline) -> list[str] | None:
    """Return the poolings by name where the flags would join them in another order."""
    kinds = kinds_of(outline.recipe.pooling.kind)
    if list(kinds) == [kind for kind in POOLINGS if kind in kinds]:
        return None
    return [POOLINGS[kind][0] for kind in kinds]


def _read_flag(kind: str) -> Callable[[Draft, bool], None]:
    def read(draft: Draft, value: bool) -> None:
        if value:
            draft.facts.setdefault("flags", []).append(kind)

    return read


def _write_flag(kind: str) -> Callable[[Outline], bool]:
    return lambda outline: kind in kinds_of(outline.recipe.pooling.kind)


def _read_width(draft: Draft, value: int) -> None:
    if draft.facts.setdefault("width", value) != value:
        raise ModelError(
            f"{draft.folder} says that a state is {draft.facts['width']} wide, and {value} wide; "
            f"correct {' or '.join(WIDTHS)} of the pooling"
        )


def _read_include_prompt(draft: Draft, value: bool) -> None:
    if not value:
        draft.changes |= {"pooling.over": list(AFTER_PROMPT), "pooling.boundary": "count_prompt"}


def _read_pooling(draft: Draft) -> None:
    kinds = draft.facts.get("poolings") or draft.facts.get("flags") or ["mean"]
    draft.changes["pooling.kind"] = kinds[0] if len(kinds) == 1 else kinds


def _read_layers(draft: Draft) -> None:
    """Read a mean of layers, where the network gives these to it and their weights are alike.

    Raises:
        ModelError: the weights are missing, or not one for each layer.
        UnsupportedError: weights that differ.
    """
    place, config = draft.facts["place"], optional_json(draft.facts["network"] / "config.json")
    if not config.get("output_hidden_states"):
        return  # there it changes nothing, having no layers to read
    first, count = draft.facts.get("layer_start", 4), draft.facts.get("layer_count", 12)
    weights_L = read_tensors(place, "model.safetensors", "pytorch_model.bin").get("layer_weights")
    own = config.get("num_hidden_layers", count)
    if weights_L is None or weights_L.shape != (count + 1 - first,) or own != count:
        raise ModelError(
            f"{place} does not hold layer_weights, one for each of the layers {first} to {count} "
            f"of {own}; the folder's parts are not of one model"
        )
    if not bool((weights_L == weights_L[0]).all()) or not bool(weights_L[0] > 0):
        raise UnsupportedError(
            f"{place} weighs layers by {', '.join(f'{w:.3g}' for w in weights_L.tolist())}; "
            "EmbedLM can honour weights that are all the same (pooling.layer averages). Give "
            "recipe= to say how the model is read"
        )
    draft.changes["pooling.layer"] = list(range(first, count + 1))


def _read_dense(draft: Draft) -> None:
    _same_place(draft)
    if not draft.facts.get("late_interaction"):
        draft.changes["heads"] = [{"dense": {"projection": "auto"}}]


def _read_layer_norm(draft: Draft) -> None:
    draft.changes["heads"] = [{"dense": {"projection": "auto"}}]


def _read_normalize(draft: Draft) -> None:
    _same_place(draft)
    if not draft.facts.get("late_interaction"):
        draft.changes["normalize"] = True


def _same_place(draft: Draft) -> None:
    """Refuse a module that reads or writes something else than what its place says."""
    late = draft.facts.get("late_interaction", False)
    expected = "token_embeddings" if late else "sentence_embedding"
    kind = draft.stages[-1]
    given = draft.facts.pop("input", expected if kind == "Dense" else "sentence_embedding")
    written = draft.facts.pop("output", given)
    for key, value in (("module_input_name", given), ("module_output_name", written)):
        if value != expected:
            raise UnsupportedError(
                f"{draft.folder} has a {kind} module whose {key} is {value!r}; EmbedLM can honour "
                f"{expected!r} there. Give recipe= to say how the model is read"
            )


def _read_splade(draft: Draft) -> None:
    options = {
        "reduce": draft.facts.get("pooling_strategy", "max"),
        "activation": draft.facts.get("activation", "relu"),
    }
    draft.changes["heads"] = [{"sparse": options}]
    draft.changes["similarity"] = "dot"


def _read_static(draft: Draft) -> None:
    """Read a table of vectors: the mean of a text's own tokens, zeros for none."""
    draft.changes |= {
        "backbone.kind": "static",
        "prompt.special_tokens": "none",
        "pooling.kind": "mean",
        "pooling.empty": "zero",
    }


def _read_sparse_static(draft: Draft) -> None:
    """Read a table of weights."""
    _read_static(draft)
    draft.changes["heads"] = [{"sparse": {"weights": "static"}}]
    draft.changes["similarity"] = "dot"


def _sparse(recipe: Recipe) -> Sparse:
    return next(head for head in recipe.heads if isinstance(head, Sparse))


_BY_WORDS = "it splits a text at blanks, and not into tokens"
REFUSED = {
    "BoW": _BY_WORDS,
    "WordEmbeddings": _BY_WORDS,
    "WordWeights": _BY_WORDS,
    "CNN": "it is a network of its own between token states and their pooling",
    "LSTM": "it is a network of its own between token states and their pooling",
    "SparseAutoEncoder": "its sparse vectors are over neurons, and those here over a vocabulary",
}
"""Modules of sentence-transformers that no recipe expresses, and why."""
_VECTORS = one_of("sentence_embedding", "token_embeddings")
WIDTHS = ("word_embedding_dimension", "embedding_dimension")
"""The width of a state, under its name before version 6 and in it."""
_PLACES = (
    Setting("module_input_name", _VECTORS, keep("input")),
    Setting("module_output_name", _VECTORS, keep("output"), null="missing"),
)

MODULES = {
    module.kind: module
    for module in (
        Module("Transformer"),
        Module("MLMTransformer", package=SPARSE),
        Module("StaticEmbedding", read=_read_static),
        Module(
            "SparseStaticEmbedding",
            # The table's reader takes the path.
            (Setting("frozen", FLAG), Setting("path", TEXT, null="missing")),
            _read_sparse_static,
            SPARSE,
        ),
        Module(
            "WeightedLayerPooling",
            (
                Setting(WIDTHS[0], COUNT, _read_width),
                Setting(WIDTHS[1], COUNT, _read_width),
                Setting("layer_start", FROM_ZERO, keep("layer_start")),
                Setting("num_hidden_layers", COUNT, keep("layer_count")),
            ),
            _read_layers,
            needs=(WIDTHS,),
        ),
        Module(
            "Pooling",
            (
                Setting(WIDTHS[0], COUNT, _read_width, lambda outline: outline.width),
                Setting(WIDTHS[1], COUNT, _read_width),
                Setting("include_prompt", FLAG, _read_include_prompt, lambda o: _includes(o)),
                Setting("pooling_mode", MODES, _read_mode, _write_mode),
                *(
                    Setting(flag, FLAG, _read_flag(kind), _write_flag(kind))
                    for kind, (_, flag) in POOLINGS.items()
                ),
            ),
            _read_pooling,
            needs=(WIDTHS,),
        ),
        Module(
            "Dense",
            (
                # The weights' reader takes these.
                Setting("in_features", COUNT),
                Setting("out_features", COUNT),
                Setting("bias", FLAG),
                Setting("activation_function", TEXT),
                Setting("use_residual", FLAG),
                *_PLACES,
            ),
            _read_dense,
            needs=(("in_features",), ("out_features",)),
        ),
        Module(
            "LayerNorm", (Setting("dimension", COUNT),), _read_layer_norm, needs=(("dimension",),)
        ),
        Module(
            "Normalize",
            _PLACES,
            _read_normalize,
        ),
        Module("Dropout", (Setting("dropout", SHARE),)),
        Module(
            "SpladePooling",
            (
                Setting(
                    "pooling_strategy",
                    one_of("max", "sum"),
                    keep("pooling_strategy"),
                    lambda o: "sum" if _sparse(o.recipe).reduce == "sum" else "max",
                ),
                Setting(
                    "activation_function",
                    one_of("relu", "log1p_relu"),
                    keep("activation"),
                    lambda o: _sparse(o.recipe).activation,
                ),
                # A note about the vocabulary; the weights' own width counts.
                Setting(WIDTHS[0], COUNT, write=lambda o: o.vocabulary, null="missing"),
                Setting(WIDTHS[1], COUNT, null="missing"),
                Setting("chunk_size", COUNT, null="missing"),
            ),
            _read_splade,
            SPARSE,
            needs=(),
        ),
        Module(
            "MultiVectorMask",
            (
                Setting("skiplist_words", TEXTS, keep("skip"), null="missing"),
                Setting("skiplist_tasks", one_of(["document"], "document"), null="missing"),
                Setting("keep_only_token_ids", NOTHING, null="missing"),
            ),
        ),
    )
}
"""The module types that a recipe can express."""


def _includes(outline: Outline) -> bool:
    return outline.recipe.pooling.over == "all"
