"""Folders of adapters: where they lie, and what their files say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from embedlm.backbone.tensors import read_tensors
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.errors import ModelError, UnsupportedError, require
from embedlm.jobs.json_files import read_json
from embedlm.jobs.user_cache import expanded

__all__ = [
    "CONFIG_FILE",
    "adapter_folder",
    "chosen_tokenizer",
    "own_adapters",
    "read_adapter_config",
    "read_adapter_weights",
    "split_adapters",
]

CONFIG_FILE = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_TOKENIZER_FILES = (
    *_VOCABULARIES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
)
_KINDS = (
    "LORA",
    "ADALORA",
    "BOFT",
    "FOURIERFT",
    "HRA",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "OFT",
    "SHIRA",
    "TRAINABLE_TOKENS",
)
"""Kinds of adapters that were compared with peft's own, merged and switched."""
_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Options of LoRA that change what is computed in a way that EmbedLM does not have."""
_STARTS_FROM_DATA = ("corda", "loftq", "lora_ga")
"""Ways to start LoRA that change the base by what only the training knew."""


def adapter_folder(source: str, name: str, hub: Mapping[str, Any] | None = None) -> Path:
    """Return the folder of an adapter: as given, below or beside the model's folder, or the hub's.

    Args:
        source: folder or hub id of the model.
        name: of the adapter.
        hub: the token, and the folder of what is downloaded.

    Raises:
        ModelError: there is none.
    """
    base = Path(source)
    for path in (expanded(name), base / name, base.parent / name):
        if (path / CONFIG_FILE).is_file():
            return path
    local = Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1
    if not local:
        patterns = [CONFIG_FILE, *_WEIGHTS, *_TOKENIZER_FILES]
        try:
            path = Path(snapshot_download(name, allow_patterns=patterns, **(hub or {})))
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
        ModelError: the adapter names no base, or one that is not there.
        UnsupportedError: the adapter asks for a revision of its base.
    """
    adapters: list[str] = []
    while _is_adapter(Path(source)):
        if source in adapters:
            raise ModelError(f"the adapter {source!r} is its own base; correct {CONFIG_FILE}")
        adapters.insert(0, source)
        written = _facts(Path(source))
        base = written.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise ModelError(
                f"the adapter {source!r} names no base model (base_model_name_or_path is "
                f"{base!r}); load the base and give the adapter with adapters=[...]"
            )
        beside = Path(source) / base
        if not beside.is_dir() and base.startswith((".", "/", "~")) and not Path(base).is_dir():
            raise ModelError(
                f"the adapter {source!r} is for the base model {base!r}, which is no folder here; "
                "load the base from where it is and give the adapter with adapters=[...]"
            )
        if written.get("revision") not in (None, "main"):
            raise UnsupportedError(
                f"the adapter {source!r} is for the revision {written['revision']!r} of {base!r}; "
                "download that revision, load its folder, and give the adapter with adapters=[...]"
            )
        source = str(beside.resolve()) if beside.is_dir() else base
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


def _facts(folder: Path) -> dict[str, Any]:
    content = read_json(folder / CONFIG_FILE)
    if not isinstance(content, dict):
        raise ModelError(f"{folder / CONFIG_FILE} holds {type(content).__name__}, not a mapping")
    return content


def read_adapter_config(folder: Path) -> Any:
    """Return an adapter's config, of peft.

    Raises:
        MissingExtraError: peft is not installed.
        ModelError: a file that cannot be used.
        UnsupportedError: a kind of adapter, or an option, that EmbedLM cannot honour.
    """
    peft = require("peft", "train")
    file, written = folder / CONFIG_FILE, _facts(folder)
    kind = written.get("peft_type")
    if kind not in _KINDS:
        raise UnsupportedError(
            f"{file}: peft_type is {kind!r}; EmbedLM can apply {', '.join(_KINDS)}"
        )
    for key in _REFUSED:
        if kind == "LORA" and written.get(key):
            raise UnsupportedError(
                f"{file}: {key} is {str(written[key])[:80]}; EmbedLM has LoRA without it"
            )
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # the library's own errors have no common base
        raise ModelError(f"{file} cannot be used: {str(error)[:200]}") from error
    known = {field.name for field in fields(config)}
    for key, value in written.items():
        if value and key not in known:
            raise UnsupportedError(
                f"{file}: {key} is {str(value)[:80]!r}, which peft {peft.__version__} does not "
                "know and which may change vectors; update peft"
            )
    start = str(written.get("init_lora_weights"))
    if start in _STARTS_FROM_DATA or start.startswith("pissa_niter"):
        raise UnsupportedError(
            f"{file}: init_lora_weights is {start!r}, which changes the base by what only the "
            "training knew; save the adapter with path_initial_model_for_weight_conversion"
        )
    config.task_type = None  # the task's wrapper would want a language-model head
    config.inference_mode = True
    return config


def read_adapter_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter, by the names of its file.

    Raises:
        ModelError: they are not there, or cannot be read.
    """
    state = read_tensors(folder, *_WEIGHTS)
    if not state:
        raise ModelError(
            f"the adapter's weights in {str(folder)!r} are not there; expected is one of "
            f"{' and '.join(_WEIGHTS)}"
        )
    return state


def chosen_tokenizer(source: str, config: Any, folders: Sequence[Path], *, merge: bool) -> Any:
    """Return the tokenizer that adapters bring with them, else the base's.

    Args:
        source: folder or hub id of the base.
        config: of the base.
        folders: of the adapters.
        merge: whether the adapters become one network; switchable ones without a tokenizer were
            made for the base's.

    Raises:
        ModelError: the adapters were made for different tokenizers, or a tokenizer cannot be read.
    """
    bring = [one for one in folders if any((one / name).is_file() for name in _VOCABULARIES)]
    if not bring:
        return load_tokenizer(source)
    tokenizers = {str(one): load_tokenizer(str(one), config) for one in bring}
    if not merge and len(bring) < len(folders):
        tokenizers[source] = load_tokenizer(source)
    (first, chosen), *others = tokenizers.items()
    for name, other in others:
        if _reading(other) != _reading(chosen):
            raise ModelError(
                f"the adapters were made for different tokenizers: that of {first!r} reads texts "
                f"otherwise than that of {name!r}. Load them apart"
            )
    return chosen


def _reading(tokenizer: Any) -> tuple[Any, ...]:
    """Return all that a tokenizer's ids depend on."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None:
        core.no_truncation()
        core.no_padding()
    special: Mapping[str, Any] = tokenizer.special_tokens_map
    return (
        None if core is None else core.to_str(),
        {name: str(token) for name, token in special.items()},
        tokenizer.chat_template,
    )
