"""The folder of an index, and the model that it was made with.

    INDEX/
      index.json          what the index is, and which generation is the present one
      gen-000001/         a generation: written beside the one before, never changed afterwards
        catalogue.sqlite  ids, texts, metadata, counts of terms
        store/            the vectors (store.npz of the exact store)
        statistics.npz    token statistics and ranges of the model, where it has any
        files.json        sizes and digests of these files, see `search.whole`

A change writes a new generation and then index.json, so that a process that is killed leaves the
index as it was, and one that has the index open reads on in peace.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from embedlm.encode.identity import identity
from embedlm.errors import InputError, ModelError
from embedlm.jobs.json_files import read_json
from embedlm.jobs.manifest import difference
from embedlm.jobs.names import real_path
from embedlm.readout.frequency import Statistics
from embedlm.readout.quantized import Ranges
from embedlm.schema.base import validated
from embedlm.schema.recipe import MultiVector, Recipe
from embedlm.search.chunks import Chunking
from embedlm.search.edge import EdgeStore
from embedlm.search.exact import ExactStore
from embedlm.search.store import FirstStage
from embedlm.search.whole import check_files
from embedlm.vision import settings_digest

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = [
    "FORMAT",
    "STORES",
    "check_model",
    "is_index",
    "load_model",
    "model_facts",
    "open_store",
    "read_index",
    "store_options",
    "write_statistics",
]

FORMAT = "embedlm index 2"
FACTS = "index.json"
CATALOGUE = "catalogue.sqlite"
STATISTICS = "statistics.npz"
STORES = ("edge", "exact")
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "generation": str,
    "store": str,
    "model": dict,
    "heads": list,
    "first": (dict, NoneType),
    "chunking": (dict, NoneType),
    "analyzer": str,
    "average": (float, int),
}
_OF_MODEL = {"name", "recipe", "options", "identity"}


def is_index(path: str | Path) -> bool:
    """Tell whether a folder is an index."""
    return (Path(path) / FACTS).is_file()


def read_index(path: Path) -> dict[str, Any]:
    """Return what an index is.

    Raises:
        InputError: no index is there, or its index.json is damaged.
    """
    file = path / FACTS
    if not file.is_file():
        raise InputError(f"{str(path)!r} is not an index; make one: {_making(path)}")
    facts = read_json(file, InputError)
    whole = (
        isinstance(facts, dict)
        and facts.get("format") == FORMAT
        and all(isinstance(facts.get(name, ...), kind) for name, kind in _FIELDS.items())
        and facts["model"].keys() >= _OF_MODEL
    )
    if not whole:
        raise InputError(
            f"{file} is damaged, or was written by another version of EmbedLM; make the index again"
        )
    if not (path / str(facts["generation"])).is_dir():
        raise InputError(
            f"{str(path)!r} lacks its folder {facts['generation']!r}; make the index again"
        )
    return dict(facts)


def _making(path: Path) -> str:
    """Return the command that makes an index where none is; another name than a file's own."""
    if not path.exists():
        return f"embedlm index IN -o {path}"
    end = "-2.index" if path.suffix == ".index" else ".index"
    return f"embedlm index {path if path.is_file() else 'IN'} -o {path.with_suffix('')}{end}"


# -- the model ----------------------------------------------------------------------------------


def model_facts(model: Embedder, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a model is: how it is loaded again, and a hash of its weights and recipe.

    Args:
        model: of the index.
        options: with which `embedlm.load` gave it: dtype, adapters, generator, max_length.
    """
    with_head = any(head.reads_lm_head for head in model.readout.heads)
    found = identity(model, with_head=with_head)
    libraries = found["software"]
    routes = (route for route, *_ in found["model"].get("routes", {}).values())
    for facts in (found["model"], *routes):
        for name in ("device", "attention", "dtype"):
            facts.pop(name)
    name = str(real_path(model.name)) if Path(model.name).exists() else model.name
    return {
        "name": name,
        "recipe": None if model.readout.trained else found["recipe"],
        "options": {key: value for key, value in (options or {}).items() if value},
        "identity": {
            **found["model"],
            "config": {"digest": found["config"], "transformers": libraries["transformers"]},
            "recipe": found["recipe"],
        },
    }


def check_model(facts: Mapping[str, Any], model: Embedder, path: Path) -> None:
    """Refuse a model that would embed queries otherwise than the documents were.

    Raises:
        InputError: with what differs.
    """
    now = model_facts(model)["identity"]
    before = _as_written_now(facts["model"]["identity"], now)
    change = difference(before, now)
    if not change:
        _check_images(facts, model, path)
        return
    made = f"the index {str(path)!r} was made with the model {facts['model']['name']!r}, "
    same = facts["model"]["name"] == model_facts(model)["name"]
    if before["weights"] != now["weights"]:
        change = "it has other weights"  # hashes say no more
    parts = ("weights", "config", "tokenizer", "routes")
    if same and any(before.get(part) != now.get(part) for part in parts):
        raise InputError(f"{made}which is another one by now ({change}); make a new index")
    raise InputError(
        f"{made}and {model.name!r} is another one ({change}); leave --model out, or make a new "
        "index"
    )


def _as_written_now(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model was, as it would be written now; so too that of each of its routes."""
    # Another version of transformers may write the same config otherwise.
    other = before.get("config", {}).get("transformers") != now["config"]["transformers"]
    routes = {
        role: (
            model,
            now["routes"][role][1] if other and role in now.get("routes", {}) else config,
            _with_new_fields(recipe),
        )
        for role, (model, config, recipe) in before.get("routes", {}).items()
    }
    return {
        **before,
        "config": now["config"] if other else before["config"],
        "recipe": _with_new_fields(before["recipe"]),
        **({"routes": {role: list(one) for role, one in routes.items()}} if routes else {}),
    }


def _with_new_fields(recipe: Mapping[str, Any]) -> Any:
    """Return a recipe in which fields that there were not when it was written have defaults."""
    return json.loads(validated(Recipe, recipe, "the index's recipe").model_dump_json())


def _check_images(facts: Mapping[str, Any], model: Embedder, path: Path) -> None:
    """Refuse a model whose images are read otherwise by now.

    Raises:
        InputError: says so.
    """
    kept = facts.get("images")
    if kept is not None and kept != settings_digest(model.route("document").backbone):
        raise InputError(
            f"the index {str(path)!r} was made with images as preprocessor_config.json of "
            f"{facts['model']['name']!r} said, and it says something else by now; make a new index"
        )


def load_model(facts: Mapping[str, Any], path: Path, device: Any = None) -> Embedder:
    """Load the model of an index, with the statistics that it had.

    Raises:
        ModelError: it is no longer there.
        InputError: what is there now is another model.
    """
    import embedlm

    saved = facts["model"]
    recipe = None if saved["recipe"] is None else Recipe.model_validate(saved["recipe"])
    lm_head = saved["identity"].get("head") is not None
    try:
        model: Embedder = embedlm.load(
            saved["name"], recipe, device=device, lm_head=lm_head, **saved["options"]
        )
    except ModelError as error:
        raise type(error)(f"the model of the index {str(path)!r} cannot be loaded: {error}") from (
            error
        )
    model = restored(model, path / facts["generation"])
    check_model(facts, model, path)
    return model


def write_statistics(model: Embedder, folder: Path) -> None:
    """Write what a model has learnt from the documents: token statistics, ranges."""
    statistics = model.readout.statistics
    if statistics is not None:
        values = {f.name: getattr(statistics, f.name) for f in fields(statistics)}
        np.savez(folder / STATISTICS, **{k: v for k, v in values.items() if v is not None})
    model.ranges.save(folder)


def restored(model: Embedder, folder: Path) -> Embedder:
    """Return a model with what that of an index had learnt.

    The given one stays as it is: another index may be open with it, which learnt something else.
    """
    from embedlm.embedder import Embedder

    readout, ranges = model.readout, Ranges.load(folder)
    if (folder / STATISTICS).is_file():
        with np.load(folder / STATISTICS, allow_pickle=False) as file:
            values: dict[str, Any] = dict(file)
        values["texts"] = int(values["texts"])
        readout = readout.with_statistics(Statistics(**values))
    elif not ranges.by_form:
        return model
    return Embedder(
        readout,
        model.executor,
        name=model.name,
        generator=model.generator,
        ranges=ranges if ranges.by_form else model.ranges,
        routes=model.routes,
    )


# -- the store ----------------------------------------------------------------------------------


def store_options(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which the store of an index is made."""
    first = facts["first"]
    return {
        "similarity": facts["similarity"],
        "length_normalize": facts["length_normalize"],
        "first": None if first is None else FirstStage(**first),
    }


def new_facts(
    model: Embedder,
    options: Mapping[str, Any] | None,
    *,
    store: str,
    first: FirstStage | None,
    chunking: Chunking | None,
    analyzer: str,
) -> dict[str, Any]:
    """Return what a new index is."""
    recipe = model.recipe
    mean = any(isinstance(head, MultiVector) and head.score == "mean" for head in recipe.heads)
    return {
        "format": FORMAT,
        "store": store,
        "model": model_facts(model, options),
        "heads": [head.kind for head in model.readout.heads],
        "similarity": recipe.similarity,
        "length_normalize": mean,
        "first": None if first is None else asdict(first),
        "chunking": None if chunking is None else asdict(chunking),
        "analyzer": analyzer,
    }


def make_store(facts: Mapping[str, Any], folder: Path) -> EdgeStore | ExactStore:
    """Return an empty store for a generation."""
    if facts["store"] == "exact":
        return ExactStore(**store_options(facts))
    return EdgeStore(folder / "store", **store_options(facts))


def open_store(facts: Mapping[str, Any], folder: Path) -> EdgeStore | ExactStore:
    """Return the store of a generation.

    Raises:
        InputError: a file of the generation is damaged or missing.
        JobError: another process has the store open.
    """
    check_files(folder)
    if facts["store"] == "exact":
        return ExactStore.open(folder / "store.npz")
    return EdgeStore.open(folder / "store")
