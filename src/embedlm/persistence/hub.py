"""Models of the hub: where their files lie on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import snapshot_download

from embedlm.backbone.config import check_reachable, is_local, load_config, unloadable
from embedlm.backbone.table import is_table
from embedlm.errors import InputError, ModelError
from embedlm.persistence.layouts import TRANSFORMER_FILES
from embedlm.persistence.listing import first_module
from embedlm.persistence.model2vec import is_model2vec
from embedlm.persistence.router import read_router
from embedlm.persistence.stanford import METADATA
from embedlm.readout.frequency import STATISTICS_FILE
from embedlm.readout.quantized import RANGES_FILE
from embedlm.schema.arguments import usable_path

__all__ = [
    "check_model_kwargs",
    "downloaded",
    "layout_folder",
    "network_config",
    "network_place",
    "whole_folder",
]

_FILES = (
    "embedlm.yaml",
    "config.json",
    "modules.json",
    "router_config.json",
    "config_sentence_transformers.json",
    *TRANSFORMER_FILES,
    "tokenizer.json",
    "tokenizer_config.json",
    "*/config.json",
    *(f"*/{name}" for name in (*TRANSFORMER_FILES[:1], "tokenizer.json", "tokenizer_config.json")),
    "*_Dense/*",
    "*_LayerNorm/*",
    "*_WeightedLayerPooling/*",
    "llm2vec_config.json",
    METADATA,
    "adapter_config.json",
    "latent_attention.safetensors",
    "token_layers.safetensors",
    RANGES_FILE,
    STATISTICS_FILE,
    "sparse_linear.pt",
    "colbert_linear.pt",
    "*/adapter_*",
)
"""The files that tell a layout, and the parts beside the network; not the network's weights."""


_COPIES = ("*.onnx", "*.msgpack", "*.h5", "*.ot", "*.gguf", "onnx/*", "openvino/*", "original/*")
"""Forms of a model's weights that are not read."""
_PICKLES = "pytorch_model*.bin"
_SET_HERE = {
    "dtype": "load(dtype=...)",
    "torch_dtype": "load(dtype=...)",
    "attn_implementation": "load(attn=...)",
    "device_map": "load(device=...)",
    "quantization_config": "load(dtype='int8')",
    "load_in_8bit": "load(dtype='int8')",
    "revision": "load(revision=...)",
    "token": "load(token=...)",
    "use_auth_token": "load(token=...)",
    "cache_dir": "load(cache_dir=...)",
    "config": "the recipe's backbone",
    "adapter_kwargs": "load(adapters=...)",
}
"""Arguments of `from_pretrained` that EmbedLM sets, and where they are given instead."""
_NEVER = (
    "trust_remote_code",
    "code_revision",
    "state_dict",
    "key_mapping",
    "output_loading_info",
    "ignore_mismatched_sizes",
    "from_tf",
    "from_flax",
    "subfolder",
    "weights_only",
)
"""Arguments that would run a repository's code or give another model than the folder's."""


def check_model_kwargs(given: Mapping[str, Any] | None) -> None:
    """Refuse arguments of `from_pretrained` that EmbedLM sets itself, or never gives.

    Raises:
        InputError: names the argument.
    """
    for name in given or {}:
        if name in _SET_HERE:
            raise InputError(f"model_kwargs holds {name!r}; give it as {_SET_HERE[name]}")
        if name in _NEVER:
            raise InputError(
                f"model_kwargs holds {name!r}, which EmbedLM never passes on: remote code is not "
                "run, and weights are those of the model's files; leave it out"
            )


def downloaded(
    source: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> str:
    """Return the folder of a hub model that is asked for by revision, token or cache.

    A folder stays as it is, as does a hub id without any of these. A folder needs neither token nor
    cache, but has no revisions.

    Raises:
        InputError: a folder with a revision.
        ModelError: the hub cannot be reached, or has no such model.
    """
    path = usable_path(source, ModelError)
    if path.exists() or source.startswith((".", "/", "~")):
        if revision is not None:
            raise InputError(
                f"revision is {revision!r}, but {source!r} is a folder here, which has no "
                "revisions; leave it out, or give a hub id"
            )
        return source
    if is_local(source) or (revision is None and token is None and cache_dir is None):
        return source
    options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    try:
        folder = _snapshot(source, **options)
    except Exception as error:  # the hub's client and its transport have no common base
        at = "" if revision is None else f" at revision {revision!r}"
        reason = shorten(" ".join(str(error).split()), 300, placeholder=" ...")
        raise ModelError(
            f"cannot load {source!r}{at} from the Hugging Face hub: {reason}. Check the id, the "
            "revision, the token and the network, or give the path of a local folder"
        ) from error
    return str(folder)


def _snapshot(source: str, **options: Any) -> Path:
    """Return the folder of a hub model with all its files but further forms of its weights."""
    folder = Path(snapshot_download(source, ignore_patterns=[*_COPIES, _PICKLES], **options))
    if any(folder.glob("*.safetensors")):
        return folder
    return Path(snapshot_download(source, ignore_patterns=[*_COPIES], **options))


def network_place(source: str) -> str:
    """Return where a model's network, or its table of embeddings, lies.

    It is the model's folder or hub id itself, or a folder below it. A table, and what lies below a
    hub model, is downloaded here.

    Raises:
        ModelError: a hub model that cannot be reached.
    """
    folder = layout_folder(source)
    kind, path = first_module(folder)
    if is_local(source):
        return str(path) if path != folder else source
    if path == folder and "Static" not in kind and not is_model2vec(folder):
        return source
    return str(whole_folder(source) / path.relative_to(folder))


def network_config(source: str) -> Any | None:
    """Return the config of a model's network; None: it is a table, or has several (a Router).

    Raises:
        ModelError: nothing that can be loaded is there.
    """
    place = network_place(source)
    if is_table(place) or read_router(layout_folder(source)) is not None:
        return None
    return load_config(place)


def whole_folder(source: str) -> Path:
    """Return the folder of a model with all its files, downloaded where it is one of the hub.

    Raises:
        ModelError: a hub model that cannot be reached.
    """
    if is_local(source):
        return Path(source)
    try:
        return _snapshot(source)
    except Exception as error:  # the hub's client and its transport have no common base
        check_reachable(source)
        raise unloadable(source, "files", error) from error


def layout_folder(source: str) -> Path:
    """Return the folder of a model, or of a hub model's small files.

    Raises:
        ModelError: a hub model that cannot be reached: without these files, nothing would tell how
            it is read, and vectors would be others than its own.
    """
    path = Path(source)
    if is_local(source):
        return path
    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's client and its transport have no common base
        check_reachable(source)
        raise unloadable(source, "files", error) from error
