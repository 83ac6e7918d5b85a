"""The two-way table of sentence-transformers' layouts (versions 2 to 6, and PyLate's).

Each row says how one key of one file is read into a recipe and how it is written from one. A new
module is one entry of MODULES. What a key means was read in sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from embedlm.errors import UnsupportedError
from embedlm.persistence.settings import (
    COUNT,
    FLAG,
    NOTHING,
    TEXT,
    TEXTS,
    Draft,
    Outline,
    Setting,
    Values,
    one_of,
)
from embedlm.schema.heads import MultiVector, Sparse
from embedlm.schema.recipe import Recipe

__all__ = [
    "AFTER_PROMPT",
    "MODULES",
    "PYLATE",
    "SETTINGS",
    "TRANSFORMER",
    "TRANSFORMER_FILES",
    "Module",
    "leaves_prompt_out",
]

DENSE = "sentence_transformers.models."
SPARSE = "sentence_transformers.sparse_encoder.models."


def _keep(key: str) -> Callable[[Draft, Any], None]:
    """Return a reader that keeps the value until all files are read."""
    return lambda draft, value: draft.facts.update({key: value})


def _change(path: str) -> Callable[[Draft, Any], None]:
    """Return a reader that puts the value into a field of the recipe."""
    return lambda draft, value: draft.changes.update({path: value})


# -- config_sentence_transformers.json ---------------------------------------------------------

PROMPTS = Values(
    "a mapping of names to strings",
    lambda value: (
        isinstance(value, dict) and all(isinstance(one, str | None) for one in value.values())
    ),
)
SIMILARITIES = {"cosine": "cosine", "dot": "dot"}
"""Names of similarities here, and there."""
LATE_INTERACTIONS = {"sum": "MaxSim", "mean": "meanmaxsim"}
"""A multi-vector head's `score` here, and there (PyLate writes MaxSim, version 6 maxsim)."""


def multi_vector(recipe: Recipe) -> MultiVector:
    """Return the recipe's multi-vector head."""
    return next(head for head in recipe.heads if isinstance(head, MultiVector))


def _read_similarity(draft: Draft, value: str) -> None:
    scores = {there.lower(): here for here, there in LATE_INTERACTIONS.items()}
    if value.lower() in scores:
        draft.facts["score"] = scores[value.lower()]
    else:
        draft.changes["similarity"] = {there: here for here, there in SIMILARITIES.items()}[value]


def _write_similarity(outline: Outline) -> str:
    heads = outline.recipe.heads
    if isinstance(heads[0], MultiVector):
        return LATE_INTERACTIONS[heads[0].score]
    return "dot" if isinstance(heads[0], Sparse) else SIMILARITIES[outline.recipe.similarity]


def model_type(recipe: Recipe) -> str:
    """Return the class that opens a recipe's folder; token vectors are written as PyLate does."""
    kinds = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "multi_vector": "ColBERT"}
    return kinds[recipe.heads[0].kind]


def _is_multi_vector(outline: Outline) -> bool:
    return isinstance(outline.recipe.heads[0], MultiVector)


SETTINGS = (
    Setting("__version__"),
    Setting("requirements"),
    Setting(
        "model_type",
        one_of("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder", "ColBERT"),
        _keep("model_type"),
        lambda outline: model_type(outline.recipe),
    ),
    Setting(
        "prompts",
        PROMPTS,
        _keep("prompts"),
        # PyLate's prefixes stand in keys of their own.
        lambda outline: {} if _is_multi_vector(outline) else dict(outline.prompts),
    ),
    Setting(
        "default_prompt_name",
        TEXT,
        _keep("default_prompt_name"),
        lambda outline: None if _is_multi_vector(outline) else outline.default_prompt,
    ),
    Setting(
        "similarity_fn_name",
        one_of(*SIMILARITIES.values(), "MaxSim", "maxsim", "meanmaxsim"),
        _read_similarity,
        _write_similarity,
    ),
    Setting("truncate_dim", NOTHING),
    Setting("max_active_dims", COUNT, _keep("max_active_dims")),
)
"""Keys of config_sentence_transformers.json."""


# -- PyLate's keys of the same file, which version 6 keeps with the Transformer ----------------

EXPANSION = Values(
    '{"strategy": "fixed", "length": ..., "attend": ..., "token": null}',
    lambda value: (
        isinstance(value, dict)
        and set(value) <= {"strategy", "length", "attend", "token"}
        and value.get("strategy") == "fixed"
        and COUNT.fit(value.get("length"))
        and isinstance(value.get("attend", False), bool)
        and value.get("token") is None
    ),
)


def _lengths(outline: Outline) -> dict[str, int]:
    lengths = outline.recipe.prompt.max_length
    return lengths if isinstance(lengths, dict) else {}


LATE_INTERACTION = (
    Setting("query_length", COUNT, _keep("query_length"), lambda o: _lengths(o)["query"]),
    Setting("document_length", COUNT, _keep("document_length"), lambda o: _lengths(o)["document"]),
    Setting("query_expansion", EXPANSION, _keep("query_expansion"), null=True),
)
PYLATE = (
    *LATE_INTERACTION,
    Setting("query_prefix", TEXT, _keep("query_prefix"), lambda o: o.prompts["query"]),
    Setting("document_prefix", TEXT, _keep("document_prefix"), lambda o: o.prompts["document"]),
    Setting(
        "do_query_expansion",
        FLAG,
        _keep("do_query_expansion"),
        lambda o: o.recipe.prompt.expansion is not None,
    ),
    Setting("attend_to_mask_tokens", FLAG, _keep("attend")),
    Setting(
        "attend_to_expansion_tokens",
        FLAG,
        _keep("attend"),
        lambda o: o.recipe.prompt.expansion is not None and o.recipe.prompt.expansion.attended,
    ),
    Setting("skiplist_words", TEXTS, _keep("skip"), lambda o: list(multi_vector(o.recipe).skip)),
)
"""Keys of config_sentence_transformers.json that make a folder one of token vectors."""


# -- sentence_bert_config.json -----------------------------------------------------------------

TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names of the file with the Transformer's settings; the first that is there counts."""
_HARMLESS = {
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "local_files_only",
    "revision",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_cache",
}
LOADING = Values(
    f"a mapping with {', '.join(sorted(_HARMLESS))}",
    lambda value: isinstance(value, dict) and set(value) <= _HARMLESS,
)
_OUTPUTS = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}
MODALITIES = Values(
    'text by "forward", read from last_hidden_state or logits',
    lambda value: (
        isinstance(value, dict)
        and isinstance(value.get("text"), dict)
        and value["text"].get("method") == "forward"
        and value["text"].get("method_output_name") in _OUTPUTS.values()
    ),
)


TRANSFORMER = (
    Setting("max_seq_length", COUNT, _keep("max_seq_length"), lambda outline: outline.max_length),
    Setting(
        "do_lower_case",
        FLAG,
        _keep("lower"),
        lambda outline: outline.recipe.prompt.clean == "lower",
    ),
    Setting("transformer_task", one_of(*_OUTPUTS)),
    Setting("modality_config", MODALITIES),
    Setting("module_output_name", one_of("token_embeddings")),
    Setting("processing_kwargs", one_of({})),
    Setting("unpad_inputs"),
    Setting("tokenizer_name_or_path", NOTHING),
    *(
        Setting(f"{part}_{kind}", LOADING)
        for part in ("model", "tokenizer", "config")
        for kind in ("args", "kwargs")
    ),
    Setting("processor_kwargs", LOADING),
    *(Setting(one.key, one.values, one.read, null=one.null) for one in LATE_INTERACTION),
)
"""Keys of sentence_bert_config.json."""


# -- modules -----------------------------------------------------------------------------------


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
                    _keep("pooling_strategy"),
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
                Setting("skiplist_words", TEXTS, _keep("skip")),
                Setting("skiplist_tasks", one_of(["document"], "document")),
                Setting("keep_only_token_ids", NOTHING),
            ),
        ),
    )
}
"""The module types that a recipe can express."""


def _includes(outline: Outline) -> bool:
    return outline.recipe.pooling.over == "all"
