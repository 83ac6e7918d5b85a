"""Saving a model with its recipe, in a folder that sentence-transformers opens too where it can."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError
from embedlm.heads.latent import save_latent
from embedlm.heads.projection import Projection, save_projection
from embedlm.heads.tokens import save_token_layers
from embedlm.persistence.expressible import Prefixes, is_expressible, pools_alike, prefixes_of
from embedlm.persistence.read import RECIPE_FILE
from embedlm.prompt.special import add_eos

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["is_expressible", "save"]

_POOLING = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
_PREFIX = "sentence_transformers.models."


def save(embedder: Embedder, folder: Path) -> None:
    """Write the model's folder; nothing is left half written.

    Raises:
        InputError: the target is a file, or a folder that holds something else.
    """
    if folder.is_file():
        raise InputError(f"{str(folder)!r} is a file; give a folder to save the model in")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise InputError(f"the folder {str(folder)!r} holds something that is no model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(embedder, part)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.chmod(part, 0o755)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(embedder: Embedder, folder: Path) -> None:
    recipe = embedder.recipe
    prefixes = prefixes_of(recipe) if is_expressible(recipe) else None
    if prefixes is not None and not pools_alike(embedder, prefixes):
        prefixes = None
    embedder.backbone.save(folder)
    _tokenizer(embedder, prefixes is not None and prefixes.eos).save_pretrained(folder)
    dense = []
    if embedder.projection is not None:
        dense = save_projection(embedder.projection, folder)
    if embedder.latent is not None:
        save_latent(embedder.latent, folder)
    if embedder.token_layers is not None:
        save_token_layers(embedder.token_layers, folder)
        if isinstance(embedder.token_layers.vector, Projection):
            save_projection(embedder.token_layers.vector, folder)
    (folder / RECIPE_FILE).write_text(recipe.dump(), encoding="utf-8")
    if prefixes is not None:
        _write_modules(embedder, folder, prefixes, dense)
    note = (
        "sentence-transformers opens this folder with the same vectors."
        if prefixes is not None
        else "sentence-transformers cannot express this recipe; open the folder with EmbedLM."
    )
    if prefixes is not None and recipe.prompt.clean != "none":
        note += " It does not strip white space around a text, as this recipe does."
    (folder / "README.md").write_text(
        f"# {recipe.name}\n\n{recipe.summary}\n\nSaved by EmbedLM. {note}\n\n"
        f"```python\nimport embedlm\n\nmodel = embedlm.load({folder.name!r})\n```\n\n"
        f"## Recipe\n\n```yaml\n{recipe.dump()}```\n",
        encoding="utf-8",
    )


def _tokenizer(embedder: Embedder, eos: bool) -> Any:
    """Return the tokenizer, closing texts with the EOS where the prompts of the layout cannot."""
    if not eos or embedder.tokenizer.eos_token_id is None:
        return embedder.tokenizer
    tokenizer = copy.deepcopy(embedder.tokenizer)
    add_eos(tokenizer)
    return tokenizer


def _write_modules(
    embedder: Embedder, folder: Path, prefixes: Prefixes, dense: Sequence[str]
) -> None:
    recipe = embedder.recipe
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((name, "Dense") for name in dense)]
    if recipe.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
        (folder / modules[-1][0]).mkdir()
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": _PREFIX + kind}
        for i, (path, kind) in enumerate(modules)
    ]
    _json(folder / "modules.json", entries)
    pooling = {
        "word_embedding_dimension": embedder.backbone.dim,
        "include_prompt": recipe.pooling.over == "all",
    }
    for kind, key in _POOLING.items():
        pooling[key] = kind == recipe.pooling.kind
    (folder / "1_Pooling").mkdir()
    _json(folder / "1_Pooling" / "config.json", pooling)
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": prefixes.named,
        "default_prompt_name": prefixes.default,
        "similarity_fn_name": recipe.similarity,
    }
    _json(folder / "config_sentence_transformers.json", settings)
    _json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": embedder.max_length, "do_lower_case": False},
    )


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
