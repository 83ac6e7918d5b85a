"""The two-way table of sentence-transformers' layouts (versions 2 to 6, and PyLate's).

Each row says how one key of one file is read into a recipe and how it is written from one; the rows
of modules stand in `modules.py`. What a key means was read in sentence-transformers 6.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedlm.jobs.json_files import optional_json
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
    keep,
    one_of,
)
from embedlm.schema.arguments import is_text
from embedlm.schema.heads import MultiVector, Sparse
from embedlm.schema.recipe import Recipe

__all__ = ["OUTPUTS", "PYLATE", "SETTINGS", "TRANSFORMER", "TRANSFORMER_FILES", "asked_dtype"]


# -- config_sentence_transformers.json ---------------------------------------------------------

PROMPTS = Values(
    "a mapping of names to strings",
    lambda value: (
        isinstance(value, dict)
        and all(map(is_text, value))
        and all(one is None or is_text(one) for one in value.values())
    ),
)
SIMILARITIES = {
    "cosine": "cosine",
    "dot": "dot",
    "euclidean": "euclidean",
    "manhattan": "manhattan",
}
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
        draft.facts["similarity"] = {there: here for here, there in SIMILARITIES.items()}[value]


def _write_similarity(outline: Outline) -> str:
    heads = outline.recipe.heads
    if isinstance(heads[0], MultiVector):
        return LATE_INTERACTIONS[heads[0].score]
    own = heads[0] if isinstance(heads[0], Sparse) else outline.recipe
    return SIMILARITIES[own.similarity]


def _write_dim(outline: Outline) -> int | None:
    return outline.recipe.dim


def _write_top_k(outline: Outline) -> int | None:
    head = outline.recipe.heads[0]
    return head.top_k if isinstance(head, Sparse) else None


def model_type(recipe: Recipe) -> str:
    """Return the class that opens a recipe's folder; token vectors are written as PyLate does."""
    kinds = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "multi_vector": "ColBERT"}
    return kinds[recipe.heads[0].kind]


def _is_multi_vector(outline: Outline) -> bool:
    return isinstance(outline.recipe.heads[0], MultiVector)


SETTINGS = (
    Setting("__version__", null="missing"),
    Setting("requirements", null="missing"),
    Setting(
        "model_type",
        one_of("SentenceTransformer", "SparseEncoder", "MultiVectorEncoder", "ColBERT"),
        keep("model_type"),
        lambda outline: model_type(outline.recipe),
        null="missing",
    ),
    Setting(
        "prompts",
        PROMPTS,
        keep("prompts"),
        # PyLate's prefixes stand in keys of their own.
        lambda outline: {} if _is_multi_vector(outline) else dict(outline.prompts),
    ),
    Setting(
        "default_prompt_name",
        TEXT,
        keep("default_prompt_name"),
        lambda outline: None if _is_multi_vector(outline) else outline.default_prompt,
        null="missing",
    ),
    Setting(
        "similarity_fn_name",
        one_of(*SIMILARITIES.values(), "MaxSim", "maxsim", "meanmaxsim"),
        _read_similarity,
        _write_similarity,
        null="missing",
    ),
    Setting("truncate_dim", COUNT, keep("truncate_dim"), _write_dim, null="missing"),
    Setting("max_active_dims", COUNT, keep("max_active_dims"), _write_top_k, null="missing"),
)
"""Keys of config_sentence_transformers.json."""


# -- PyLate's keys of the same file, which version 6 keeps with the Transformer ----------------

EXPANSION = Values(
    '{"strategy": "fixed" or "min", "length": ..., "attend": ..., "token": null}',
    lambda value: (
        isinstance(value, dict)
        and set(value) <= {"strategy", "length", "attend", "token"}
        and value.get("strategy") in ("fixed", "min")
        and COUNT.fit(value.get("length"))
        and isinstance(value.get("attend", False), bool)
        and value.get("token") is None
    ),
)


def _lengths(outline: Outline) -> dict[str, int]:
    lengths = outline.recipe.prompt.max_length
    return lengths if isinstance(lengths, dict) else {}


LATE_INTERACTION = (
    Setting(
        "query_length",
        COUNT,
        keep("query_length"),
        lambda o: _lengths(o)["query"],
        null="missing",
    ),
    Setting(
        "document_length",
        COUNT,
        keep("document_length"),
        lambda o: _lengths(o)["document"],
        null="missing",
    ),
    Setting("query_expansion", EXPANSION, keep("query_expansion"), null="value"),
)
PYLATE = (
    *LATE_INTERACTION,
    Setting(
        "query_prefix",
        TEXT,
        keep("query_prefix"),
        lambda o: o.prompts["query"],
        null="missing",
    ),
    Setting(
        "document_prefix",
        TEXT,
        keep("document_prefix"),
        lambda o: o.prompts["document"],
        null="missing",
    ),
    Setting(
        "do_query_expansion",
        FLAG,
        keep("do_query_expansion"),
        lambda o: o.recipe.prompt.expansion is not None,
    ),
    Setting("attend_to_mask_tokens", FLAG, keep("attend")),
    Setting(
        "attend_to_expansion_tokens",
        FLAG,
        keep("attend"),
        lambda o: o.recipe.prompt.expansion is not None and o.recipe.prompt.expansion.attended,
    ),
    Setting(
        "skiplist_words",
        TEXTS,
        keep("skip"),
        lambda o: list(multi_vector(o.recipe).skip),
        null="missing",
    ),
)
"""Keys of config_sentence_transformers.json that make a folder one of token vectors."""


# -- sentence_bert_config.json -----------------------------------------------------------------

TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names of the file with the Transformer's settings; the first that is there counts."""
_HARMLESS = {
    "add_pooling_layer",
    "attn_implementation",
    "cache_dir",
    "device_map",
    "local_files_only",
    "low_cpu_mem_usage",
    "padding_side",
    "revision",
    "token",
    "trust_remote_code",
    "use_cache",
    "use_fast",
    "use_safetensors",
}
"""Arguments that change no vector here: nothing is padded but what no token looks at."""
_DTYPES = ("dtype", "torch_dtype")
_NUMBERS = ("auto", "float32", "bfloat16", "float16")


def _loading(more: tuple[str, ...] = ()) -> Values:
    """Return which arguments of a loader are known: the harmless ones and some that are read."""
    known = _HARMLESS | set(more)
    told = f"a mapping with {', '.join(sorted(known))}"
    if set(_DTYPES) & known:
        told += f" (dtype: {', '.join(_NUMBERS)})"
    return Values(told, lambda value: _known_arguments(value, known))


def _known_arguments(value: Any, known: set[str]) -> bool:
    if not isinstance(value, dict) or not set(value) <= known:
        return False
    named = [str(value[key]).removeprefix("torch.") for key in _DTYPES if value.get(key)]
    length = value.get("model_max_length")
    return set(named) <= set(_NUMBERS) and (length is None or COUNT.fit(length))


def _read_length(draft: Draft, value: dict[str, Any]) -> None:
    if value.get("model_max_length"):  # goes before max_seq_length there
        draft.facts["max_seq_length"] = value["model_max_length"]


_LOADERS = (
    *((key, _loading(_DTYPES)) for key in ("model_args", "model_kwargs")),
    *((key, _loading()) for key in ("config_args", "config_kwargs")),
    *(
        (key, _loading(("model_max_length",)))
        for key in ("tokenizer_args", "tokenizer_kwargs", "processor_kwargs")
    ),
)
ARGUMENTS = tuple(Setting(key, values, _read_length, null="missing") for key, values in _LOADERS)
"""Keys of sentence_bert_config.json with arguments of the network's and the tokenizer's loaders."""


def asked_dtype(folder: Path) -> str | None:
    """Return the numbers that a folder asks its network to be loaded in; None: it asks for none."""
    named = next((name for name in TRANSFORMER_FILES if (folder / name).is_file()), None)
    content = {} if named is None else optional_json(folder / named)
    for key, values in _LOADERS[:2]:
        given: Any = content.get(key)
        for name in _DTYPES if isinstance(given, dict) and values.fit(given) else ():
            asked = str(given.get(name) or "auto").removeprefix("torch.")
            if asked != "auto":
                return asked
    return None


OUTPUTS = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}
_READS_TEXT = ("text", "message")
"""The modalities that a text is read by; where there is a message, it is one."""


def _by_forward(modality: Any) -> bool:
    return (
        isinstance(modality, dict)
        and set(modality) <= {"method", "method_output_name", "format"}
        and modality.get("method") == "forward"
        and modality.get("method_output_name") in list(OUTPUTS.values())
        and modality.get("format", "auto") in ("auto", "flat", "structured")
    )


MODALITIES = Values(
    '"text" or "message" by "forward", read from last_hidden_state or logits',
    lambda value: (
        isinstance(value, dict)
        and any(name in value for name in _READS_TEXT)
        and all(_by_forward(value[name]) for name in _READS_TEXT if name in value)
    ),
)


def _read_modalities(draft: Draft, value: dict[str, Any]) -> None:
    # sentence-transformers makes a message of every text where it can.
    read: dict[str, Any] = value.get("message") or value["text"]
    draft.facts["reads"] = read["method_output_name"]
    if "message" in value:
        draft.facts["message"] = read.get("format", "auto")


PROCESSING = Values(
    '{"chat_template": {arguments of the chat template}}, without a length or restore_suffix',
    lambda value: (
        isinstance(value, dict)
        and set(value) <= {"chat_template"}
        and isinstance(value.get("chat_template", {}), dict)
        and not set(value.get("chat_template", {}))
        & {"padding", "truncation", "max_length", "return_tensors", "restore_suffix"}
    ),
)


TRANSFORMER = (
    Setting(
        "max_seq_length",
        COUNT,
        keep("max_seq_length"),
        lambda outline: outline.max_length,
        null="missing",
    ),
    Setting(
        "do_lower_case",
        FLAG,
        keep("lower"),
        lambda outline: outline.recipe.prompt.clean == "lower",
    ),
    Setting("transformer_task", one_of(*OUTPUTS), keep("task")),
    Setting("modality_config", MODALITIES, _read_modalities),
    Setting("module_output_name", one_of("token_embeddings")),
    Setting("processing_kwargs", PROCESSING, keep("processing")),
    Setting("unpad_inputs", FLAG, null="missing"),
    Setting("tokenizer_name_or_path", NOTHING, null="missing"),
    *ARGUMENTS,
    *(Setting(one.key, one.values, one.read, null=one.null) for one in LATE_INTERACTION),
)
"""Keys of sentence_bert_config.json."""
