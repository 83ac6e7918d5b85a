"""Low-rank adapters (LoRA, DoRA and what else peft reads) on a network.

Merged, they become part of the weights, in the order they are given. Switchable, one of them at a
time is active, or none.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from embedlm.errors import InputError, ModelError, closest, require
from embedlm.jobs.json_files import optional_json, read_json

__all__ = [
    "Adapters",
    "adapter_folder",
    "add_adapters",
    "apply_adapters",
    "own_adapters",
    "split_adapters",
]

CONFIG_FILE = "adapter_config.json"
_FILES = (CONFIG_FILE, "adapter_model.safetensors", "adapter_model.bin")
_WRAPPER = "base_model.model."


class Adapters:
    """The switchable adapters of a network."""

    def __init__(self, tuner: Any, names: Sequence[str]) -> None:
        """Take a PeftModel and the names of its adapters."""
        self.tuner = tuner
        self.names = tuple(names)

    def check(self, name: str | None) -> None:
        """Refuse a name that is no adapter's.

        Raises:
            InputError: no such adapter.
        """
        if name is not None and name not in self.names:
            raise InputError(
                f"adapter {name!r} is not loaded; allowed: None (the base alone), "
                f"{', '.join(map(repr, self.names))}.{closest(name, list(self.names))}"
            )

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Run what is inside with one adapter, or with the base alone."""
        self.check(name)
        if name is None:
            with self.tuner.disable_adapter():
                yield
            return
        self.tuner.base_model.set_adapter(_inner(self.names.index(name)), inference_mode=True)
        yield

    def parameters(self, names: Collection[str]) -> list[nn.Parameter]:
        """Return the weights of some of the adapters."""
        marks = [f".{_inner(self.names.index(name))}." for name in names]
        every = self.tuner.base_model.model.named_parameters()
        return [p for key, p in every if any(mark in f"{key}." for mark in marks)]

    def save(self, folder: Path) -> None:
        """Write each adapter below `folder`, itself below the base's, as peft does."""
        inner = [_inner(index) for index in range(len(self.names))]
        self.tuner.save_pretrained(str(folder), selected_adapters=inner)
        for name, written in zip(self.names, inner, strict=True):
            (folder / written).rename(folder / name)
            config = folder / name / CONFIG_FILE
            facts = {**read_json(config), "base_model_name_or_path": "../.."}
            config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    def base_weights(self) -> dict[str, Tensor]:
        """Return the network's own weights under their own names."""
        state: Mapping[str, Tensor] = self.tuner.base_model.model.state_dict()
        prefix = str(self.tuner.base_model.prefix)
        return {
            key.replace(".base_layer.", "."): value
            for key, value in state.items()
            if prefix not in key
        }


def _inner(index: int) -> str:
    """Return peft's own name of an adapter: a folder's may hold dots, or be part of a weight's."""
    return f"embedlm-{index}"


def adapter_folder(source: str, name: str) -> Path:
    """Return the folder of an adapter: as given, below or beside the model's folder, or the hub's.

    Raises:
        ModelError: there is none.
    """
    base = Path(source)
    for path in (Path(name).expanduser(), base / name, base.parent / name):
        if (path / CONFIG_FILE).is_file():
            return path
    local = Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    if not local:
        try:
            path = Path(snapshot_download(name, allow_patterns=list(_FILES)))
            if (path / CONFIG_FILE).is_file():
                return path
        except (HfHubHTTPError, OSError, ValueError):
            pass
    raise ModelError(
        f"adapter {name!r} is not there: no {CONFIG_FILE} in {name!r}, nor below or beside "
        f"{source!r}{'' if local else ', nor on the hub (or it cannot be reached)'}; give its "
        "folder or hub id"
    )


def split_adapters(source: str) -> tuple[str, list[str]]:
    """Return the base of a folder that is itself an adapter, and the adapters on it, in order.

    An adapter on an adapter gives both. Any other source is its own base.

    Raises:
        ModelError: the adapter names no base.
    """
    adapters: list[str] = []
    while _is_adapter(Path(source)):
        if source in adapters:
            raise ModelError(f"the adapter {source!r} is its own base; correct {CONFIG_FILE}")
        adapters.insert(0, source)
        base = read_json(Path(source) / CONFIG_FILE).get("base_model_name_or_path")
        if not base:
            raise ModelError(
                f"the adapter {source!r} names no base model; load the base and give the adapter "
                "with adapters=[...]"
            )
        beside = Path(source) / str(base)
        source = str(beside.resolve()) if beside.is_dir() else str(base)
    return source, adapters


def own_adapters(folder: Path, named: Collection[str] = ()) -> list[Path]:
    """Return the adapters that a model's folder brings: in `adapters/`, or below it by name."""
    places = [*sorted((folder / "adapters").glob("*")), *(folder / name for name in named)]
    return [place for place in places if (place / CONFIG_FILE).is_file()]


def _is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no whole model."""
    if not (folder / CONFIG_FILE).is_file():
        return False
    weights = [p for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_")]
    return not weights and not (folder / "pytorch_model.bin").is_file()


def apply_adapters(network: nn.Module, folders: Sequence[Path], *, merge: bool) -> Adapters | None:
    """Put adapters on a network, in order.

    Args:
        network: changed in place.
        folders: of adapters.
        merge: into the weights, each before the next; else they stay switchable by the names of
            their folders.

    Raises:
        ModelError: an adapter that is corrupt, or of another base.
        MissingExtraError: peft is not installed.
    """
    peft = require("peft", "train")
    names = [folder.resolve().name for folder in folders]
    if not merge and len(set(names)) < len(names):
        raise ModelError(f"two adapters have the same name: {', '.join(names)}; rename a folder")
    tuner: Any = None
    for index, folder in enumerate(folders):
        config, name = _config(folder), _inner(index)
        config.base_model_name_or_path = getattr(network, "name_or_path", None) or None
        try:
            if tuner is None or merge:
                tuner = peft.get_peft_model(network, config, name, autocast_adapter_dtype=False)
            else:
                tuner.add_adapter(name, config, autocast_adapter_dtype=False)
            state = _named(_weights(folder), network, folder)
            result = peft.set_peft_model_state_dict(tuner, state, adapter_name=name)
        except (ValueError, RuntimeError, KeyError) as error:
            raise _unfit(folder, str(error)) from error
        missing = [key for key in result.missing_keys if f".{name}." in key]
        if missing or result.unexpected_keys:
            raise _unfit(folder, str((missing or result.unexpected_keys)[0]))
        if merge:
            tuner.merge_and_unload()
    if tuner is not None and not merge:
        tuner.base_model.set_adapter(_inner(0), inference_mode=True)
    network.requires_grad_(False)
    return None if merge or tuner is None else Adapters(tuner, names)


def add_adapters(
    network: nn.Module, loaded: Adapters | None, names: Sequence[str], config: Any
) -> Adapters:
    """Put new switchable adapters on a network beside those that it has; they change nothing yet.

    Args:
        network: changed in place.
        loaded: its switchable adapters.
        names: of the new ones; those that are there already stay as they are.
        config: of peft, for each new one.
    """
    peft = require("peft", "train")
    own = loaded.names if loaded is not None else ()
    new = [name for name in dict.fromkeys(names) if name not in own]
    tuner = None if loaded is None else loaded.tuner
    for index, _ in enumerate(new, len(own)):
        if tuner is None:
            tuner = peft.get_peft_model(
                network, config, _inner(index), autocast_adapter_dtype=False
            )
        else:
            tuner.add_adapter(_inner(index), config, autocast_adapter_dtype=False)
    return Adapters(tuner, [*own, *new])


def _config(folder: Path) -> Any:
    peft = require("peft", "train")
    read_json(folder / CONFIG_FILE)  # says what is wrong where it is no JSON
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # the library's own errors have no common base
        raise ModelError(f"{folder / CONFIG_FILE} cannot be used: {str(error)[:200]}") from error
    config.task_type = None  # the task's wrapper would want a language-model head
    config.inference_mode = True
    return config


def _weights(folder: Path) -> dict[str, Tensor]:
    safe, old = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    try:
        if safe.is_file():
            return load_file(safe)
        found: dict[str, Tensor] = torch.load(old, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.PickleError) as error:
        raise ModelError(
            f"the adapter's weights in {str(folder)!r} cannot be read: {str(error)[:200]}. "
            "Expected is adapter_model.safetensors or adapter_model.bin"
        ) from error
    return found


def _named(state: Mapping[str, Tensor], network: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Return an adapter's weights under names that fit the network, with or without its head.

    An adapter of a whole model says `model.layers`, one of the body alone `layers`.
    """
    known = {name for name, _ in network.named_modules()}
    body = str(getattr(network, "base_model_prefix", "") or "model")
    first = next(iter(state), "").removeprefix(_WRAPPER)
    for cut, lead in (("", ""), (f"{body}.", ""), ("", f"{body}.")):
        path = lead + first.removeprefix(cut)
        steps = path.split(".")
        if path and any(".".join(steps[:n]) in known for n in range(len(steps) - 1, 1, -1)):
            return {
                _WRAPPER + lead + key.removeprefix(_WRAPPER).removeprefix(cut): value
                for key, value in state.items()
            }
    raise _unfit(folder, first or "no weights")


def _unfit(folder: Path, why: str) -> ModelError:
    base = optional_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    reason = " ".join(why.split())[:200]
    return ModelError(
        f"the adapter {str(folder)!r} does not fit this model ({reason}); it was made for {base!r}"
    )
