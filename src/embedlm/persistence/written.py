"""Folders of sentence-transformers and PyLate, written from a model.

What each key of their files means stands in `layouts.py` and `modules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedlm.jobs.json_files import write_json
from embedlm.persistence.layouts import PYLATE, SETTINGS, TRANSFORMER, TRANSFORMER_FILES
from embedlm.persistence.listing import LISTING
from embedlm.persistence.modules import DENSE, MODULES
from embedlm.persistence.router import ROUTER_FILE
from embedlm.persistence.sentence_transformers import SETTINGS_FILE
from embedlm.persistence.settings import Outline, write_settings
from embedlm.readout.projection import LAYERS

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.persistence.expressible import Form

__all__ = ["RouteFiles", "outline_of", "write_modules", "write_outline", "write_routes"]

PYLATE_DENSE = "pylate.models.Dense.Dense"


def write_modules(embedder: Embedder, folder: Path, form: Form, layers: Sequence[str]) -> None:
    """Write modules.json and what it points to.

    Args:
        embedder: the model that is saved.
        folder: with the network, the tokenizer and the projection in it.
        form: which of the library's classes the recipe is, and its prompts.
        layers: names of the folders of the projection's layers.
    """
    write_outline(outline_of(embedder, form, embedder.max_length), folder, layers)


def outline_of(embedder: Embedder, form: Form, length: int | None) -> Outline:
    """Return what the files of the layout say of a model that reads so many tokens."""
    named, default = form.prefixes.named, form.prefixes.default
    backbone = embedder.backbone
    return Outline(embedder.recipe, named, default, backbone.dim, backbone.vocab_size, length)


def write_outline(outline: Outline, folder: Path, layers: Sequence[str] = ()) -> None:
    """Write every file of the layout but the weights."""
    entries = []
    for index, stage in enumerate(_stages(outline, layers)):
        path = stage if stage in layers else f"{index}_{stage}" if index else ""
        kind = _class(outline, stage)
        entries.append({"idx": index, "name": str(index), "path": path, "type": kind})
        if stage not in layers:
            _write_module(outline, stage, folder / path)
    write_json(folder / LISTING, entries, indent=2)
    _write_settings(outline, folder)


def _stages(outline: Outline, layers: Sequence[str]) -> list[str]:
    """Return the kinds of the modules, in order, and the names of the layers' folders."""
    static = outline.recipe.backbone.kind == "static"
    normalized = [*layers, *["Normalize"] * outline.recipe.normalize]
    return {
        "dense": [*(["StaticEmbedding"] if static else ["Transformer", "Pooling"]), *normalized],
        "sparse": ["SparseStaticEmbedding"] if static else ["MLMTransformer", "SpladePooling"],
        "multi_vector": ["Transformer", *layers],
    }[outline.recipe.heads[0].kind]


def _class(outline: Outline, stage: str) -> str:
    """Return the class of a module, by its kind or by the name of a layer's folder."""
    module = MODULES[stage.rpartition("_")[2]]
    if module.kind == "Dense" and outline.recipe.heads[0].kind == "multi_vector":
        return PYLATE_DENSE
    return f"{module.package}{module.kind}"


def _write_module(outline: Outline, stage: str, place: Path) -> None:
    """Write the settings of a module that has no weights of its own, or a network's."""
    place.mkdir(exist_ok=True)
    content = write_settings(outline, MODULES[stage].settings)
    if content:
        write_json(place / "config.json", content, indent=2)
    if stage.endswith("Transformer"):
        write_json(place / TRANSFORMER_FILES[0], write_settings(outline, TRANSFORMER), indent=2)


def _write_settings(outline: Outline, folder: Path) -> None:
    late = outline.recipe.heads[0].kind == "multi_vector"
    keys = SETTINGS + (PYLATE if late else ())
    write_json(folder / SETTINGS_FILE, write_settings(outline, keys), indent=2)


# -- routes ------------------------------------------------------------------------------------

Writer = Callable[[Path], object]
"""Writes the weights of a module into its folder."""


@dataclass(frozen=True, slots=True)
class RouteFiles:
    """What one route is written from."""

    outline: Outline
    network: Writer
    """Of the network, or the table, with the tokenizer."""
    layers: Sequence[tuple[str, Writer]]
    """Kind and writer of each layer after the pooling."""
    shares: str | None = None
    """The route whose network it has; None: it has one of its own."""


def write_routes(routes: Mapping[str, RouteFiles], default: str | None, folder: Path) -> None:
    """Write a folder whose roles are read by modules of their own, with all weights.

    Args:
        routes: by name; one that shares a network stands after the one that it shares it with.
        default: the route of texts without a role; None: there is none for these.
        folder: an empty one.
    """
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    for route, files in routes.items():
        layers = iter(files.layers)
        names = []
        for index, stage in enumerate(_stages(files.outline, [kind for kind, _ in files.layers])):
            if index == 0 and files.shares is not None:
                names.append(structure[files.shares][0])
                continue
            names.append(f"{route}_{index}_{stage}")
            place = folder / names[-1]
            place.mkdir()
            if index == 0:
                files.network(place)
            if stage in LAYERS:
                next(layers)[1](place)
            else:
                _write_module(files.outline, stage, place)
            types[names[-1]] = _class(files.outline, stage)
        structure[route] = names
    parameters: dict[str, object] = {
        "default_route": default,
        "allow_empty_key": False,
        "route_mappings": {},
    }
    content = {"types": types, "structure": structure, "parameters": parameters}
    write_json(folder / ROUTER_FILE, content, indent=2)
    entry = {"idx": 0, "name": "0", "path": "", "type": f"{DENSE}Router"}
    write_json(folder / LISTING, [entry], indent=2)
    _write_settings(next(iter(routes.values())).outline, folder)
