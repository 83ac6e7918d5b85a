"""Saving a model with its recipe, in a folder that sentence-transformers opens too where it can."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError
from embedlm.persistence.read import RECIPE_FILE
from embedlm.recipe import Dense, Recipe

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


def is_expressible(recipe: Recipe) -> bool:
    """Tell whether sentence-transformers can do the same: prefix prompts and a plain pooling."""
    prompt = recipe.prompt
    templates = [prompt.default, prompt.query, prompt.document, *prompt.roles.values()]
    return (
        all(t is None or _prefix_of(t) is not None for t in templates)
        and prompt.clean == "none"
        and prompt.tokenize == "joined"
        and prompt.special_tokens == "tokenizer"
        and recipe.pooling.over == "all"
        and recipe.pooling.layer == -1
        and recipe.pooling.weights == "none"
        and recipe.backbone.kind == "transformer"
        and recipe.transform is None
        and recipe.heads == (Dense(),)
    )


def _prefix_of(template: Any) -> str | None:
    """Return a template's prefix if it is nothing but a prefix and the text."""
    from embedlm.prompt.template import parse_template

    if not isinstance(template, str):
        return None
    pieces = parse_template(template)
    if [p.kind for p in pieces] == ["text"]:
        return ""
    if [p.kind for p in pieces] == ["literal", "text"]:
        return pieces[0].value
    return None


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
    embedder.backbone.save(folder)
    embedder.tokenizer.save_pretrained(folder)
    recipe = embedder.recipe
    (folder / RECIPE_FILE).write_text(recipe.dump(), encoding="utf-8")
    expressible = is_expressible(recipe)
    if expressible:
        _write_modules(embedder, folder)
    note = (
        "sentence-transformers opens this folder with the same vectors."
        if expressible
        else "sentence-transformers cannot express this recipe; open the folder with EmbedLM."
    )
    (folder / "README.md").write_text(
        f"# {recipe.name}\n\n{recipe.summary}\n\nSaved by EmbedLM. {note}\n\n"
        f"```python\nimport embedlm\n\nmodel = embedlm.load({folder.name!r})\n```\n\n"
        f"## Recipe\n\n```yaml\n{recipe.dump()}```\n",
        encoding="utf-8",
    )


def _write_modules(embedder: Embedder, folder: Path) -> None:
    recipe = embedder.recipe
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if recipe.normalize:
        modules.append(("2_Normalize", "Normalize"))
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": _PREFIX + kind}
        for i, (path, kind) in enumerate(modules)
    ]
    _json(folder / "modules.json", entries)
    pooling = {"word_embedding_dimension": embedder.dim, "include_prompt": True}
    for kind, key in _POOLING.items():
        pooling[key] = kind == recipe.pooling.kind
    (folder / "1_Pooling").mkdir()
    _json(folder / "1_Pooling" / "config.json", pooling)
    if recipe.normalize:
        (folder / "2_Normalize").mkdir()
    prompt = recipe.prompt
    named = {"query": prompt.query, "document": prompt.document, **prompt.roles}
    prompts = {name: _prefix_of(template) for name, template in named.items() if template}
    default = _prefix_of(prompt.default) if prompt.default else ""
    if default:
        prompts["default"] = default
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": prompts,
        "default_prompt_name": "default" if default else None,
        "similarity_fn_name": recipe.similarity,
    }
    _json(folder / "config_sentence_transformers.json", settings)
    _json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": embedder.max_length, "do_lower_case": False},
    )


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
