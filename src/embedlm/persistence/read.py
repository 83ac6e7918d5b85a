"""Which recipe a model folder asks for: its own, or one derived from a known layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embedlm.errors import ModelError, UnsupportedError
from embedlm.recipe import Recipe

__all__ = ["RECIPE_FILE", "derive_recipe", "resolve_adapters"]

RECIPE_FILE = "embedlm.yaml"
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES = {"weightedmean": "weighted_mean", "lasttoken": "last"}


def derive_recipe(source: str) -> Recipe:
    """Return the recipe saved in a folder, else one derived from its files, else plain-mean.

    Raises:
        ModelError: a layout file that cannot be read.
        UnsupportedError: a module that no recipe can express.
    """
    folder = Path(source)
    if (folder / RECIPE_FILE).is_file():
        return Recipe.load(folder / RECIPE_FILE)
    if (folder / "modules.json").is_file():
        return _from_sentence_transformers(folder)
    return Recipe.load("plain-mean")


def read_json(path: Path) -> Any:
    """Return a JSON file's content."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error


def _optional(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _from_sentence_transformers(folder: Path) -> Recipe:
    """Read modules.json (versions 2 to 6) and what it points to."""
    data: dict[str, Any] = {
        "name": folder.name.lower().replace("_", "-") or "model",
        "summary": "derived from a sentence-transformers folder",
        "pooling": {},
        "prompt": {"default": "{text}"},
        "heads": ["dense"],
    }
    for module in _modules(folder / "modules.json"):
        kind = str(module["type"]).rsplit(".", 1)[-1]
        if kind not in _MODULES:
            raise UnsupportedError(
                f"{folder.name!r} has the module {module['type']!r}, which EmbedLM does not know; "
                f"known: {', '.join(_MODULES)}. Give recipe= to say how to pool"
            )
        _MODULES[kind](data, _optional(folder / module["path"] / "config.json"))
    bert = _optional(folder / "sentence_bert_config.json")
    if bert.get("max_seq_length"):
        data["prompt"]["max_length"] = int(bert["max_seq_length"])
    settings = _optional(folder / "config_sentence_transformers.json")
    _prompts(data, settings)
    if settings.get("similarity_fn_name") in ("cosine", "dot"):
        data["similarity"] = settings["similarity_fn_name"]
    return Recipe.load(data)


def _modules(path: Path) -> list[dict[str, Any]]:
    found = read_json(path)
    for module in found if isinstance(found, list) else [found]:
        if not isinstance(module, dict) or not {"type", "path"} <= set(module):
            raise ModelError(f'{path} is not a list of modules, each with "type" and "path"')
    return list(found)


def _prompts(data: dict[str, Any], settings: dict[str, Any]) -> None:
    """Turn named prefix prompts into roles."""
    prompts = settings.get("prompts") or {}
    prompt = data["prompt"]
    for name, prefix in prompts.items():
        template = str(prefix).replace("{", "{{").replace("}", "}}") + "{text}"
        if name in ("query", "document"):
            prompt[name] = template
        else:
            prompt.setdefault("roles", {})[name] = template
    default = settings.get("default_prompt_name")
    if default in prompts:
        prompt["default"] = str(prompts[default]).replace("{", "{{").replace("}", "}}") + "{text}"


def _pooling(data: dict[str, Any], config: dict[str, Any]) -> None:
    if "pooling_mode" in config:
        modes = config["pooling_mode"]
        names = [modes] if isinstance(modes, str) else list(modes)
        kinds = [_POOLING_NAMES.get(name, name) for name in names]
    else:
        kinds = [kind for key, kind in _POOLING_KEYS.items() if config.get(key)]
    if len(kinds) != 1:
        raise UnsupportedError(f"the folder concatenates poolings {kinds}; EmbedLM takes one")
    data["pooling"]["kind"] = kinds[0]
    if config.get("include_prompt") is False:
        data["pooling"]["over"] = ["text", "eos"]


def _splade(data: dict[str, Any], config: dict[str, Any]) -> None:
    data["heads"] = [{"sparse": {"reduce": config.get("pooling_strategy", "max")}}]
    data["similarity"] = "dot"


_MODULES: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "Transformer": lambda data, config: None,
    "MLMTransformer": lambda data, config: None,
    "Pooling": _pooling,
    "Normalize": lambda data, config: data.update(normalize=True),
    "SpladePooling": _splade,
}


def resolve_adapters(source: str, adapters: Sequence[str], *, merge: bool) -> str:
    """Return the folder to load once adapters are applied; without adapters, the source itself."""
    if not adapters:
        return source
    raise UnsupportedError("adapters are not supported in this version; merge them beforehand")
