"""The files by which sentence-transformers (and PyLate) open a folder.

A dense recipe is a SentenceTransformer, SPLADE's a SparseEncoder, ColBERT's a MultiVectorEncoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.jobs.json_files import write_json
from embedlm.persistence.expressible import Form
from embedlm.schema.recipe import MultiVector, Recipe, Sparse

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["write_modules"]

_POOLING = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
_DENSE = "sentence_transformers.models."
_SPARSE = "sentence_transformers.sparse_encoder.models."
_PYLATE = "pylate.models.Dense.Dense"


def write_modules(embedder: Embedder, folder: Path, form: Form, dense: Sequence[str]) -> None:
    """Write modules.json and what it points to.

    Args:
        embedder: that is saved.
        folder: with network, tokenizer and projections in it.
        form: which of the libraries' models the recipe is, and its prompts.
        dense: names of the folders of the projection's layers.
    """
    write = {"dense": _sentence, "sparse": _splade, "multi_vector": _colbert}[form.kind]
    modules, settings = write(embedder, folder, dense, form)
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": kind}
        for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries, indent=2)
    prompts = {"prompts": form.prefixes.named, "default_prompt_name": form.prefixes.default}
    write_json(folder / "config_sentence_transformers.json", {**prompts, **settings}, indent=2)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": embedder.max_length, "do_lower_case": False},
        indent=2,
    )


Written = tuple[list[tuple[str, str]], dict[str, Any]]
"""Folder and type of each module, and settings."""


def _sentence(embedder: Embedder, folder: Path, dense: Sequence[str], _: Form) -> Written:
    recipe = embedder.recipe
    modules = [
        ("", f"{_DENSE}Transformer"),
        ("1_Pooling", f"{_DENSE}Pooling"),
        *((name, f"{_DENSE}Dense") for name in dense),
    ]
    if recipe.normalize:
        modules.append((f"{len(modules)}_Normalize", f"{_DENSE}Normalize"))
        (folder / modules[-1][0]).mkdir()
    pooling = {
        "word_embedding_dimension": embedder.backbone.dim,
        "include_prompt": recipe.pooling.over == "all",
    }
    for kind, key in _POOLING.items():
        pooling[key] = kind == recipe.pooling.kind
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling, indent=2)
    return modules, {"model_type": "SentenceTransformer", "similarity_fn_name": recipe.similarity}


def _splade(embedder: Embedder, folder: Path, _: Sequence[str], __: Form) -> Written:
    (head,) = embedder.recipe.heads
    assert isinstance(head, Sparse)
    pooling = {
        "pooling_strategy": "sum" if head.reduce == "sum" else "max",
        "activation_function": "relu",
        "word_embedding_dimension": embedder.backbone.vocab_size,
    }
    (folder / "1_SpladePooling").mkdir()
    write_json(folder / "1_SpladePooling" / "config.json", pooling, indent=2)
    modules = [("", f"{_SPARSE}MLMTransformer"), ("1_SpladePooling", f"{_SPARSE}SpladePooling")]
    return modules, {"model_type": "SparseEncoder", "similarity_fn_name": "dot"}


def _colbert(embedder: Embedder, folder: Path, dense: Sequence[str], form: Form) -> Written:
    recipe = embedder.recipe
    (head,) = recipe.heads
    assert isinstance(head, MultiVector)
    lengths, expansion = _lengths(recipe), recipe.prompt.expansion
    settings: dict[str, Any] = {
        "model_type": "ColBERT",
        "similarity_fn_name": "MaxSim",
        # Prefixes stand here and are no prompts beside.
        "prompts": {},
        "default_prompt_name": None,
        "query_prefix": form.prefixes.named["query"],
        "document_prefix": form.prefixes.named["document"],
        "query_length": lengths["query"],
        "document_length": lengths["document"],
        "do_query_expansion": expansion is not None,
        "attend_to_expansion_tokens": expansion is not None and expansion.attended,
        "skiplist_words": list(head.skip),
    }
    return [("", f"{_DENSE}Transformer"), *((name, _PYLATE) for name in dense)], settings


def _lengths(recipe: Recipe) -> dict[str, int]:
    """Return the tokens of queries and documents."""
    given = recipe.prompt.max_length
    assert isinstance(given, dict)
    return given
