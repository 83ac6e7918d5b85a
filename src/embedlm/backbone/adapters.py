"""Low-rank adapters (LoRA, DoRA and what else peft reads) on a network.

Merged, they become part of the weights, in the order they are given. Switchable, a pass runs with
one of them, or with none.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embedlm.backbone.adapter_files import CONFIG_FILE, read_adapter_config, read_adapter_weights
from embedlm.backbone.adapter_names import HEADS, WRAPPER, fitted_names
from embedlm.backbone.views import copy_structure
from embedlm.errors import InputError, ModelError, UnsupportedError, closest, require
from embedlm.jobs.json_files import optional_json, read_json

__all__ = [
    "Adapters",
    "add_adapters",
    "apply_adapters",
    "base_weights",
    "check_adapter",
    "check_adapter_roles",
    "check_vocabulary",
]

_COPIES = (".modules_to_save.", ".trainable_tokens_")
"""Parts of the names of an adapter's own copies of a base's weights, or of rows of them."""


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

    def save(self, folder: Path, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Write each adapter below `folder`, itself below the base's, as peft does.

        Args:
            folder: is made.
            network: the whole network, with its head where it was loaded.
            state: its weights, by name.
        """
        # peft finds an adapter's weights by the modules around it, so these must be whole again.
        tuner: Any = copy_structure(self.tuner, {id(self.tuner.base_model.model): network})
        inner = [_inner(index) for index in range(len(self.names))]
        whole = {WRAPPER + name: weight for name, weight in state.items()}
        with warnings.catch_warnings(action="ignore"):  # of tables that it writes too
            tuner.save_pretrained(str(folder), selected_adapters=inner, state_dict=whole)
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


def check_adapter_roles(adapters: Adapters | None, roles: Mapping[str, str]) -> None:
    """Refuse roles of switchable adapters that are not among those that were loaded.

    Without any, the recipe's method is applied to another model.

    Raises:
        InputError: names the first such role and the adapters that there are.
    """
    if adapters is None:
        return
    for role, name in roles.items():
        if name not in adapters.names:
            raise InputError(
                f"backbone.adapter_roles: {role} is served by {name!r}, which is not loaded; there "
                f"are {', '.join(map(repr, adapters.names))}.{closest(name, list(adapters.names))} "
                "Load it too, or change the roles"
            )


def base_weights(adapters: Adapters, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's weights without those of its adapters, under the network's own names."""
    marks = (str(adapters.tuner.base_model.prefix), *_COPIES)
    return {_plain(k): w for k, w in state.items() if not any(mark in k for mark in marks)}


def _inner(index: int) -> str:
    """Return peft's own name of an adapter: a folder's may hold dots, or be part of a weight's."""
    return f"embedlm-{index}"


def apply_adapters(network: nn.Module, folders: Sequence[Path], *, merge: bool) -> Adapters | None:
    """Put adapters on a network, in order.

    New tokens of an adapter get rows in the network's tables.

    Args:
        network: changed in place.
        folders: of adapters.
        merge: into the weights, each before the next; else they stay switchable by the names of
            their folders.

    Raises:
        ModelError: an adapter that is corrupt, or of another base.
        UnsupportedError: an adapter of a kind that EmbedLM does not have, one that cannot be
            merged, or a switchable one that changes the base for the others too.
        MissingExtraError: peft is not installed.
    """
    names = [folder.resolve().name for folder in folders]
    if not merge and len(set(names)) < len(names):
        raise ModelError(f"two adapters have the same name: {', '.join(names)}; rename a folder")
    tuner: Any = None
    for index, folder in enumerate(folders):
        config = read_adapter_config(folder)
        config.base_model_name_or_path = getattr(network, "name_or_path", None) or None
        own = read_adapter_weights(folder)
        state = fitted_names(own, config, network)
        if state is None:
            raise _unfit(folder, next(iter(own), "").removeprefix(WRAPPER) or "no weights")
        _check_rank(config, state, folder)
        if not merge:
            _check_shared(network, config, state, folder)
        _resize(network, state)
        tuner = _put(network, None if merge else tuner, config, state, (folder, _inner(index)))
        if merge:
            _untie(network, folder)
            _merge(tuner, folder)
    if tuner is not None and not merge:
        tuner.base_model.set_adapter(_inner(0), inference_mode=True)
    network.eval().requires_grad_(False)  # new layers come with their dropout at work
    return None if merge or tuner is None else Adapters(tuner, tuple(names))


def _check_rank(config: Any, state: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a rank that the weights do not have, before peft makes layers of that size.

    Raises:
        ModelError: names both.
    """
    rank, ranks = getattr(config, "r", None), [len(x) for k, x in state.items() if ".lora_A." in k]
    if not isinstance(rank, int) or config.peft_type == "ADALORA":  # which gives ranks up
        return
    named = {rank, *(getattr(config, "rank_pattern", None) or {}).values()}
    other = next((one for one in ranks if one not in named), None)
    most = max((weight.numel() for weight in state.values()), default=0)
    if other is not None or max(named) > most:
        raise ModelError(
            f"{folder / CONFIG_FILE}: the rank (r, rank_pattern) is "
            f"{' or '.join(map(str, sorted(named)))}, and the adapter's weights have "
            f"{most if other is None else other}; the two are not of one adapter"
        )


def _put(
    network: nn.Module, tuner: Any, config: Any, state: dict[str, Tensor], which: tuple[Path, str]
) -> Any:
    """Put one adapter on a network, or beside those of a tuner; return the tuner."""
    peft = require("peft", "train")
    folder, name = which
    try:
        with warnings.catch_warnings(action="ignore"):  # what it warns of is refused or honoured
            if tuner is None:
                tuner = peft.get_peft_model(network, config, name, autocast_adapter_dtype=False)
            else:
                tuner.add_adapter(name, config, autocast_adapter_dtype=False)
            result = peft.set_peft_model_state_dict(tuner, state, adapter_name=name)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _unfit(folder, str(error)) from error
    missing = [key for key in result.missing_keys if f".{name}." in key]
    if missing or result.unexpected_keys:
        raise _unfit(folder, str((missing or result.unexpected_keys)[0]))
    return tuner


def _untie(network: Any, folder: Path) -> None:
    """Let tables and heads that shared their weights be merged apart: a layer has its own adapter.

    Trained tokens are the same in both.

    Raises:
        UnsupportedError: others than a table and a head share an adapted layer's weights.
    """
    names: dict[int, list[str]] = {}
    for key, weight in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(key)
    for name, layer in list(network.named_modules()):
        base = getattr(layer, "base_layer", None) if hasattr(layer, "merge") else None
        shared = names.get(id(getattr(base, "weight", None)), [])
        others = [key for key in shared if not key.startswith(f"{name}.")]
        if base is None or not others or "token_adapter" in name or hasattr(layer, "token_indices"):
            continue
        if not any(key.startswith(HEADS) for key in (name, *others)):
            raise UnsupportedError(
                f"the adapter {str(folder)!r} cannot be merged, because {_plain(others[0])} shares "
                f"the weights of {name}, which it changes; load it with merge=False"
            )
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        for config in (network.config, network.config.get_text_config()):
            config.tie_word_embeddings = False


def _merge(tuner: Any, folder: Path) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # of tables that it has untied
            tuner.merge_and_unload()
    except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
        raise UnsupportedError(
            f"the adapter {str(folder)!r} cannot be merged ({str(error)[:200]}); load it with "
            "merge=False"
        ) from error


def _own_parameters(network: nn.Module) -> dict[str, Tensor]:
    """Return the network's own weights, whatever adapters lie around them, by their own names."""
    return {_plain(key): weight for key, weight in network.named_parameters()}


def _plain(key: str) -> str:
    """Return the name of a base's weight without the layers that peft puts around it."""
    return re.sub(r"\.(token_adapter|base_layer|original_module)(?=\.)", "", key)


def _resize(network: Any, state: Mapping[str, Tensor]) -> None:
    """Give the network's tables the rows that an adapter's own copies of them have."""
    table = network.get_input_embeddings()
    if table is None:
        return
    own = next((k for k, w in _own_parameters(network).items() if w is table.weight), None)
    saved = None if own is None else state.get(WRAPPER + own)
    if saved is not None and saved.ndim == 2 and len(saved) != len(table.weight):
        # The rows are read from the adapter's file, whatever they are made of here.
        network.resize_token_embeddings(len(saved), mean_resizing=False)


def _check_shared(
    network: nn.Module, config: Any, state: Mapping[str, Tensor], folder: Path
) -> None:
    """Refuse a switchable adapter that changes the base's weights, which the others run on too.

    Raises:
        UnsupportedError: names the first of these weights.
    """
    start = getattr(config, "init_lora_weights", True)
    if start in ("pissa", "olora"):
        raise UnsupportedError(
            f"the adapter {str(folder)!r} changes the base's weights (init_lora_weights: {start}), "
            "so it cannot be switched; load it with merge=True"
        )
    copied = tuple(getattr(config, "modules_to_save", None) or ())
    saved = {_plain(key).removeprefix(WRAPPER): weight for key, weight in state.items()}
    for key, own in _own_parameters(network).items():
        weight = saved.get(key)
        if weight is None or key.rpartition(".")[0].endswith(copied):
            continue
        if not weight[: len(own)].to(own).equal(own):  # further rows are those of new tokens
            raise UnsupportedError(
                f"the adapter {str(folder)!r} changes the base's own weights ({key}), so it cannot "
                "be switched; load it with merge=True"
            )


def check_vocabulary(network: Any, tokenizer: Any, folders: Sequence[Path]) -> None:
    """Refuse a tokenizer with tokens that a network has no row for.

    Raises:
        ModelError: names the first of them.
    """
    rows = len(network.get_input_embeddings().weight)
    new = {token: i for token, i in tokenizer.get_added_vocab().items() if i >= rows}
    new.pop(str(tokenizer.pad_token), None)  # padding is never read
    if new:
        raise ModelError(
            f"the tokenizer has the token {min(new, key=new.__getitem__)!r}, for which neither the "
            f"base nor the adapters ({', '.join(map(str, folders))}) have a row of embeddings"
        )


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
    network.eval()  # the training turns their dropout on, step by step
    return Adapters(tuner, (*present, *new))


def _unfit(folder: Path, why: str) -> ModelError:
    base = optional_json(folder / CONFIG_FILE).get("base_model_name_or_path")
    reason = " ".join(why.split())[:200]
    return ModelError(
        f"the adapter {str(folder)!r} does not fit this model ({reason}); it was made for {base!r}"
    )
