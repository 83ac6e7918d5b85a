"""Low-rank adapters (LoRA, DoRA and what else peft reads) on a network.

Merged, they become part of the weights, in the order they are given. Switchable, a pass runs with
one of them, or with none.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn

from embedlm.backbone.tensors import read_tensors
from embedlm.errors import InputError, ModelError, closest, require
from embedlm.jobs.json_files import optional_json, read_json

__all__ = [
    "Adapters",
    "adapter_folder",
    "add_adapters",
    "apply_adapters",
    "base_weights",
    "check_adapter",
    "own_adapters",
    "split_adapters",
]

CONFIG_FILE = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WRAPPER = "base_model.model."


@dataclass(frozen=True, slots=True)
class Adapters:
    """The switchable adapters of a network."""

    tuner: Any
    """peft's model around the network."""
    names: tuple[str, ...]

    def activate(self, view: nn.Module, name: str | None) -> None:
        """Let a view of the network run with one adapter, or with the base alone (None).

        peft's own switches turn gradients on and off too, which the views of a network share.
        """
        for module in view.modules():
            if hasattr(module, "_active_adapter"):
                module.__dict__["_disable_adapters"] = name is None
                if name is not None:
                    module.__dict__["_active_adapter"] = [_inner(self.names.index(name))]

    def parameters(self, names: Collection[str], network: nn.Module) -> list[nn.Parameter]:
        """Return the weights of some of the adapters on a network."""
        marks = [f".{_inner(self.names.index(name))}." for name in names]
        every = network.named_parameters()
        return [p for key, p in every if any(mark in f"{key}." for mark in marks)]

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write each adapter below `folder`, itself below the base's, as peft does.

        Args:
            folder: is made.
            state: the weights of the whole network, by name.
        """
        inner = [_inner(index) for index in range(len(self.names))]
        whole = {_WRAPPER + name: weight for name, weight in state.items()}
        self.tuner.save_pretrained(str(folder), selected_adapters=inner, state_dict=whole)
        for name, written in zip(self.names, inner, strict=True):
            (folder / written).rename(folder / name)
            config = folder / name / CONFIG_FILE
            facts = {**read_json(config), "base_model_name_or_path": "../.."}
            config.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def check_adapter(adapters: Adapters | None, name: str | None) -> None:
    """Refuse a name that is no switchable adapter's.

    Raises:
        InputError: no such adapter.
    """
    if name is None or (adapters is not None and name in adapters.names):
        return
    if adapters is None:
        raise InputError(
            f"adapter {name!r} is not loaded, nor is any other that can be switched; load "
            "the model with adapters=[...] and merge=False"
        )
    raise InputError(
        f"adapter {name!r} is not loaded; allowed: None (the base alone), "
        f"{', '.join(map(repr, adapters.names))}.{closest(name, list(adapters.names))}"
    )


def base_weights(adapters: Adapters, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's weights without those of its adapters, under the network's own names."""
    mark = str(adapters.tuner.base_model.prefix)
    return {k.replace(".base_layer.", "."): w for k, w in state.items() if mark not in k}


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
            path = Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, *_WEIGHTS]))
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
    folders = [*sorted((folder / "adapters").glob("*")), *(folder / name for name in named)]
    return [path for path in folders if (path / CONFIG_FILE).is_file()]


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
    return None if merge or tuner is None else Adapters(tuner, tuple(names))


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
    present = loaded.names if loaded is not None else ()
    new = [name for name in dict.fromkeys(names) if name not in present]
    tuner = None if loaded is None else loaded.tuner
    for index, _ in enumerate(new, len(present)):
        if tuner is None:
            tuner = peft.get_peft_model(
                network, config, _inner(index), autocast_adapter_dtype=False
            )
        else:
            tuner.add_adapter(_inner(index), config, autocast_adapter_dtype=False)
    return Adapters(tuner, (*present, *new))


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
    state = read_tensors(folder, *_WEIGHTS)
    if not state:
        raise ModelError(
            f"the adapter's weights in {str(folder)!r} are not there; expected is one of "
            f"{' and '.join(_WEIGHTS)}"
        )
    return state


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
