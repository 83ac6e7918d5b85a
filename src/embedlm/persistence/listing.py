"""modules.json of sentence-transformers: which modules a folder has, and where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from embedlm.errors import EmbedLMError, ModelError, UnsupportedError
from embedlm.jobs.json_files import inner_path, read_json, read_object
from embedlm.persistence.modules import INPUTS, MODULES, REFUSED, Module
from embedlm.persistence.settings import FROM_ZERO, TEXT, TEXTS, Draft, Setting, read_settings

__all__ = [
    "LISTING",
    "Modules",
    "check_order",
    "first_module",
    "listed_entries",
    "module_at",
    "read_listing",
    "read_module",
]

LISTING = "modules.json"
PACKAGES = ("sentence_transformers", "pylate")
_ENTRY = (
    Setting("idx", FROM_ZERO),
    Setting("name", TEXT),
    Setting("path", TEXT),
    Setting("type", TEXT),
    # Names of arguments that a call may pass on.
    Setting("kwargs", TEXTS, null="missing"),
)
_NEEDED = ("name", "path", "type")


Modules = list[tuple[str, Path]]
"""Kind and folder of each module, in order."""


def read_listing(folder: Path) -> Modules:
    """Return kind and folder of each module, in order; none where there is no modules.json.

    Raises:
        ModelError: a file that cannot be read, or a path outside the folder.
        UnsupportedError: a module that is not known.
    """
    file = folder / LISTING
    return [
        module_at(folder, file, entry["type"], entry["path"]) for entry in listed_entries(folder)
    ]


def listed_entries(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a folder's modules.json, checked; none where it has no such file.

    Raises:
        ModelError: a file that cannot be read.
        UnsupportedError: an entry with a key that is not known.
    """
    file = folder / LISTING
    if not file.is_file():
        return []
    entries = read_json(file)
    whole = isinstance(entries, list) and entries
    if not whole or not all(isinstance(entry, dict) for entry in entries):
        raise ModelError(
            f'{file} is not a list of modules, each {{"idx": ..., "name": ..., "path": ..., '
            '"type": ...}'
        )
    for entry in entries:
        for key in _NEEDED:
            if key not in entry:
                raise ModelError(f"{file}: a module lacks {key!r}; each has {', '.join(_NEEDED)}")
        read_settings(Draft(folder), file, entry, _ENTRY)
    for key in ("idx", "name"):
        _check_once(file, key, [entry[key] for entry in entries if key in entry])
    found: list[dict[str, Any]] = entries
    return found


def module_at(folder: Path, file: Path, kind_ref: str, path: str) -> tuple[str, Path]:
    """Return kind and folder of a module that a file of a model's folder names.

    Raises:
        ModelError: a path outside the folder.
        UnsupportedError: a module that is not known.
    """
    package, kind = kind_ref.split(".")[0], kind_ref.rsplit(".", 1)[-1]
    if kind in REFUSED and package in PACKAGES:
        raise UnsupportedError(
            f"{file} has the module {kind_ref!r}, which EmbedLM cannot honour: {REFUSED[kind]}. "
            "Open the folder in sentence-transformers, or give recipe= where a network is in it"
        )
    if kind not in MODULES or package not in PACKAGES:
        raise UnsupportedError(
            f"{file} has the module {kind_ref!r}, which EmbedLM does not know; known: "
            f"{', '.join(MODULES)}, of {' and '.join(PACKAGES)}. Give recipe= to say how to pool"
        )
    return kind, inner_path(folder, path, file)


def first_module(folder: Path) -> tuple[str, Path]:
    """Return kind and folder of what reads a text; the model's own where its files tell no other.

    A listing that cannot be read is passed over: who asks for the recipe of a folder is told of it.
    """
    own = "Transformer", folder
    try:
        first = listed_entries(folder)[:1]
        places = [module_at(folder, folder / LISTING, one["type"], one["path"]) for one in first]
    except EmbedLMError:
        return own
    kind, path = (*places, own)[0]
    return (kind, path) if kind in INPUTS else own


def _check_once(file: Path, key: str, values: list[Any]) -> None:
    """Refuse a name that two modules share, and numbers that do not go up."""
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ModelError(f"{file}: two modules have the {key} {twice!r}; each needs its own")
    if key == "idx" and values != sorted(values):
        raise ModelError(f"{file}: idx goes {values}; modules stand in the order of their idx")


def read_module(draft: Draft, kind: str, path: Path) -> None:
    """Read one module's config.json into a draft.

    Raises:
        ModelError: it is missing where it is needed, or lacks a key.
        UnsupportedError: a key or a value that no recipe can express.
    """
    module, file = MODULES[kind], path / "config.json"
    draft.stages.append(kind)
    draft.facts["place"] = path
    if kind in INPUTS:
        draft.facts["network"] = path
    # That of a module without keys is the network's own.
    if module.settings and (file.is_file() or module.needs is not None):
        content = read_object(file)
        read_settings(draft, file, content, module.settings)
        _check_needs(file, content, module)
    module.read(draft)


def _check_needs(file: Path, content: dict[str, Any], module: Module) -> None:
    for names in module.needs or ():
        if not set(names) & set(content):
            raise ModelError(f"{file} lacks {' or '.join(map(repr, names))}; it is damaged")


_ORDERS = {
    "dense": r"(Transformer( WeightedLayerPooling)? Pooling|StaticEmbedding)"
    r"( Dense| LayerNorm| Dropout)*( Normalize| Dropout)*",
    "sparse": r"(MLM)?Transformer SpladePooling|SparseStaticEmbedding",
    "multi_vector": r"Transformer( Dense)*( Normalize| MultiVectorMask){0,2}",
}
"""The modules that each kind of model has, in their order."""
_OUTPUT = {"dense": "last_hidden_state", "sparse": "logits", "multi_vector": "last_hidden_state"}


def check_order(draft: Draft, outputs: dict[str, str]) -> str:
    """Return the kind of model that the modules make up: dense, sparse or multi_vector.

    Args:
        draft: with all modules read.
        outputs: what the network gives for each `transformer_task`.

    Raises:
        UnsupportedError: modules, or an output of the network, that make up none.
    """
    late = draft.facts.get("late_interaction", False)
    sparse = {"SpladePooling", "SparseStaticEmbedding"} & {*draft.stages}
    kind = "multi_vector" if late else "sparse" if sparse else "dense"
    if draft.stages and not re.fullmatch(_ORDERS[kind], " ".join(draft.stages)):
        raise UnsupportedError(
            f"{draft.folder / LISTING} has the modules {', '.join(draft.stages)}; EmbedLM knows "
            "Transformer, WeightedLayerPooling, Pooling, Dense..., LayerNorm, Normalize; "
            "StaticEmbedding in place of what stands before Dense; Transformer, SpladePooling; "
            "SparseStaticEmbedding; and for token vectors Transformer, Dense..., Normalize, "
            "MultiVectorMask. Give recipe= to say how the model is read"
        )
    if draft.stages and not draft.stages[0].endswith("Transformer"):
        return kind  # a table has one output
    masked = draft.stages[:1] == ["MLMTransformer"]
    task = draft.facts.get("task", "fill-mask" if masked else "feature-extraction")
    for key in (outputs[task], draft.facts.get("reads", _OUTPUT[kind])):
        if draft.stages and key != _OUTPUT[kind]:
            raise UnsupportedError(
                f"{draft.folder} reads {key} of its network, and its modules "
                f"{', '.join(draft.stages)} need {_OUTPUT[kind]}; correct transformer_task and "
                "modality_config, or give recipe= to say how the model is read"
            )
    return kind
