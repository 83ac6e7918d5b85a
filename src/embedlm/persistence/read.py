"""Which recipe a model folder asks for: its own, or one derived from a known layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import optional_json, read_json
from embedlm.persistence.hub import layout_folder
from embedlm.persistence.systems import (
    closes_with_eos,
    instructed,
    recipe_of_checkpoint,
    recognise,
)
from embedlm.schema.recipe import Recipe
from embedlm.schema.template import escape

__all__ = ["RECIPE_FILE", "derive_recipe"]

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

    A hub id that a recipe names among its checkpoints gets that recipe.

    Raises:
        ModelError: a layout file that cannot be read.
        UnsupportedError: a module that no recipe can express.
    """
    named = None if Path(source).is_dir() else recipe_of_checkpoint(source)
    if named is not None:
        return named
    folder = layout_folder(source)
    if (folder / RECIPE_FILE).is_file():
        return Recipe.load(folder / RECIPE_FILE)
    known = recognise(folder)
    if known is not None:
        return known
    if (folder / "modules.json").is_file():
        return _from_sentence_transformers(folder, Path(source).name)
    return Recipe.load("plain-mean")


def _from_sentence_transformers(folder: Path, name: str) -> Recipe:
    """Read modules.json (versions 2 to 6) and what it points to."""
    data: dict[str, Any] = {
        "name": name.lower().replace("_", "-") or "model",
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
        _MODULES[kind](data, optional_json(folder / module["path"] / "config.json"))
    bert = optional_json(folder / "sentence_bert_config.json")
    if bert.get("max_seq_length"):
        data["prompt"]["max_length"] = int(bert["max_seq_length"])
    settings = optional_json(folder / "config_sentence_transformers.json")
    _prompts(data, settings)
    if "over" in data["pooling"]:
        _leave_prompt_out(data, folder)
    if "t5" in str(optional_json(folder / "config.json").get("model_type")):
        _instructor(data)
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
    task = instructed(prompts)
    if task is not None:
        prompt["default"] = prompt["query"] = task[0]
        prompt["instruction"] = {"query": task[1]}
        prompts = {name: prefix for name, prefix in prompts.items() if name != "query"}
    for name, prefix in prompts.items():
        template = escape(str(prefix)) + "{text}"
        if name in ("query", "document"):
            prompt[name] = template
        else:
            prompt.setdefault("roles", {})[name] = template
    default = settings.get("default_prompt_name")
    if default in prompts:
        prompt["default"] = escape(str(prompts[default])) + "{text}"


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


def _leave_prompt_out(data: dict[str, Any], folder: Path) -> None:
    """Pool what follows the prompt, the closing EOS too, as sentence-transformers counts it."""
    data["pooling"]["boundary"] = "count_prefix"
    if not closes_with_eos(folder):
        return
    prompt = data["prompt"]
    for name in ("default", "query", "document"):
        if name in prompt:
            prompt[name] += "{eos}"
    prompt["roles"] = {name: one + "{eos}" for name, one in prompt.get("roles", {}).items()}


def _dense(data: dict[str, Any], config: dict[str, Any]) -> None:
    if not data["pooling"] or data.get("normalize"):
        raise UnsupportedError(
            "the folder has a Dense module that does not stand right after the pooling; give "
            "recipe= to say what to do"
        )
    data["heads"] = [{"dense": {"projection": "auto"}}]


def _instructor(data: dict[str, Any]) -> None:
    """Take instructions as Instructor does: nothing in its files tells it from GTR.

    Without an instruction the vectors are GTR's.
    """
    plain = data["pooling"] == {"kind": "mean"} and data["prompt"]["default"] == "{text}"
    if data["heads"] == ["dense"] or not plain:
        return
    own = Recipe.load("instructor")
    data["prompt"] |= {"default": own.prompt.default, "clean": own.prompt.clean}
    data["pooling"] |= {"over": own.pooling.over, "boundary": own.pooling.boundary}


def _splade(data: dict[str, Any], config: dict[str, Any]) -> None:
    data["heads"] = [{"sparse": {"reduce": config.get("pooling_strategy", "max")}}]
    data["similarity"] = "dot"


_MODULES: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "Transformer": lambda data, config: None,
    "MLMTransformer": lambda data, config: None,
    "Pooling": _pooling,
    "Dense": _dense,
    "Normalize": lambda data, config: data.update(normalize=True),
    "SpladePooling": _splade,
}
