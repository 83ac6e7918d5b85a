"""Which recipe a model folder asks for: its own, or one derived from a known layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import optional_json
from embedlm.persistence.hub import layout_folder
from embedlm.persistence.listing import LISTING, Modules, read_listing
from embedlm.persistence.model2vec import is_model2vec, read_model2vec
from embedlm.persistence.modules import WIDTHS
from embedlm.persistence.published import recipe_of_checkpoint, recognise
from embedlm.persistence.router import Router, read_router
from embedlm.persistence.sentence_transformers import (
    SETTINGS_FILE,
    is_late_interaction,
    read_folder,
    table_truncation,
)
from embedlm.schema.recipe import MultiVector, Recipe

__all__ = [
    "RECIPE_FILE",
    "check_width",
    "check_widths",
    "derive_recipe",
    "own_recipe",
    "route_recipe",
]

RECIPE_FILE = "embedlm.yaml"
TOKENIZER_FILE = "tokenizer_config.json"
RULES_FILE = "tokenizer.json"


def derive_recipe(source: str) -> Recipe:
    """Return a model's own recipe, see `own_recipe`; plain-mean where it has none."""
    return own_recipe(source) or Recipe.load("plain-mean")


def own_recipe(source: str) -> Recipe | None:
    """Return the recipe saved in a folder, else one derived from its files; None: they tell none.

    A hub id that a recipe names among its checkpoints gets that recipe.

    Raises:
        ModelError: a file of the layout that cannot be read.
        UnsupportedError: a module or a setting that no recipe can express.
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
    if not (folder / LISTING).is_file():
        return read_model2vec(folder) if is_model2vec(folder) else None
    router = read_router(folder)
    if router is not None:
        return route_recipe(router, router.default, source)
    return _derived(source, folder, read_listing(folder))


def route_recipe(router: Router, route: str, source: str) -> Recipe:
    """Return the recipe of one of a folder's routes, which knows the roles of all.

    Raises:
        ModelError: a file that cannot be read.
        UnsupportedError: a module or a setting that no recipe can express.
    """
    if is_late_interaction(router.folder):
        raise UnsupportedError(
            f"{router.folder} gives token vectors by several routes, which EmbedLM does not know; "
            "load the folder of one of them"
        )
    recipe = _derived(source, router.folder, router.routes[route])
    default = recipe.prompt.default
    named = {role: default for role in router.roles if role not in (None, "query", "document")}
    return recipe.override({"prompt.roles": {**named, **recipe.prompt.roles}})


def _derived(source: str, folder: Path, modules: Modules) -> Recipe:
    """Return the recipe that the modules of a folder ask for."""
    base = {
        "name": _name(source),
        "summary": "derived from a sentence-transformers folder",
        # As sentence-transformers reads a text, so that vectors are equal.
        "prompt": {"default": "{text}", "special_tokens_in_text": "tokens"},
        "heads": ["dense"],
    }
    recipe = read_folder(folder, Recipe.load(base), modules)
    kind, place = modules[0]
    cutting = _cuts_on_the_left(kind, place)
    if cutting is not None:
        return _left(recipe, cutting)
    is_t5 = "t5" in str(optional_json(place / "config.json").get("model_type"))
    return _instructor(recipe) if is_t5 and _may_be_instructor(source, folder) else recipe


def _cuts_on_the_left(kind: str, path: Path) -> str | None:
    """Return the setting that has what is too long cut on the left; None: it is cut on the right.

    The tokenizer's rules (tokenizer.json) count where its settings name no side.
    """
    if kind == "StaticEmbedding":
        cut = table_truncation(path)
        return f"{path / RULES_FILE}: truncation.direction" if cut and cut[1] == "left" else None
    file, key = path / TOKENIZER_FILE, "truncation_side"
    side = optional_json(file).get(key)
    if side is None:
        file, key = path / RULES_FILE, "truncation.direction"
        side = str((optional_json(file).get("truncation") or {}).get("direction", "right")).lower()
    if side not in ("left", "right"):
        raise ModelError(f"{file}: {key} is {side!r}; allowed: left, right")
    return f"{file}: {key}" if side == "left" else None


def _left(recipe: Recipe, cutting: str) -> Recipe:
    """Return the recipe with what is too long cut on the left, where vectors are equal then."""
    other = None
    if recipe.pooling.over != "all":
        other = "a pooling that leaves the prompt out (include_prompt is false)"
    elif isinstance(recipe.heads[0], MultiVector):
        other = "a model of token vectors"
    if other is not None:
        raise UnsupportedError(
            f"{cutting} is left, which is not supported with {other}; set it to right, or give "
            "recipe= to say how the model is read"
        )
    return recipe.override({"prompt.truncation_side": "left"})


def check_width(source: str, width: int) -> None:
    """Refuse a folder whose pooling is of states of another width than its network's.

    Raises:
        ModelError: names the file and both widths.
    """
    folder = layout_folder(source)
    if not (folder / RECIPE_FILE).is_file():
        check_widths(read_listing(folder), width)


def check_widths(modules: Modules, width: int) -> None:
    """Refuse modules whose pooling is of states of another width than their network's.

    Raises:
        ModelError: names the file and both widths.
    """
    for kind, path in modules:
        file = path / "config.json"
        content = optional_json(file) if kind == "Pooling" else {}
        for key in WIDTHS:
            if content.get(key, width) != width:
                raise ModelError(
                    f"{file}: {key} is {content[key]}, and the network's states have {width}; the "
                    "folder's parts are not of one model"
                )


def _name(source: str) -> str:
    """Return a recipe's name made of a folder's or a hub id's."""
    words = re.findall(r"[a-z0-9.]+", Path(source).name.lower())
    return "-".join(words).strip(".")[:100] or "model"


_OTHER_T5 = re.compile(r"gtr|sentence[-_]?t5|(^|[^a-z])st5")
_FIRST_WITHOUT_STRIPPING = 6
"""The version of sentence-transformers that strips no text any more; Instructor is older."""


def _may_be_instructor(source: str, folder: Path) -> bool:
    """Tell whether a T5 encoder may be Instructor's by its name and the version that saved it."""
    name = Path(source).name.lower()
    versions = optional_json(folder / SETTINGS_FILE).get("__version__")
    saved = versions.get("sentence_transformers") if isinstance(versions, dict) else None
    major = re.match(r"\d+", str(saved))
    recent = major is not None and int(major[0]) >= _FIRST_WITHOUT_STRIPPING
    return not recent and ("instructor" in name or _OTHER_T5.search(name) is None)


def _instructor(recipe: Recipe) -> Recipe:
    """Return the recipe with Instructor's instructions: no file tells it from GTR.

    Without an instruction the vectors are GTR's, but for white space around a text.
    """
    projects = recipe.heads != Recipe.load("plain-mean").heads
    plain = recipe.pooling.kind == "mean" and recipe.pooling.over == "all"
    if not projects or not plain or recipe.prompt.default != "{text}":
        return recipe
    own = Recipe.load("instructor")
    changes: dict[str, Any] = {
        "prompt.default": own.prompt.default,
        "prompt.clean": own.prompt.clean,
        "pooling.over": own.pooling.over,
        "pooling.boundary": own.pooling.boundary,
    }
    return recipe.override(changes)
