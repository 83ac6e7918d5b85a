"""A GGUF file as a model's folder: its config and tokenizer, made once, and its weights.

What llama.cpp keeps in one file stands in a folder of the user's cache in transformers' form, with
a link to the file beside it; the folder's name holds the file's path, size, time and beginning.
Weights stay in the file and are expanded each time they are loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import hf_hub_download

from embedlm.backbone.config import load_config
from embedlm.backbone.gguf_checks import check_vocabulary
from embedlm.backbone.gguf_config import ARCHITECTURES, config_of, pooling_of
from embedlm.backbone.gguf_file import GgufFile, read_gguf
from embedlm.backbone.gguf_splits import check_splitting, warn_of_unnamed
from embedlm.backbone.gguf_tokenizer import gguf_tokenizer
from embedlm.backbone.quiet import quiet
from embedlm.errors import ModelError, require
from embedlm.jobs import disk_errors, new_folder
from embedlm.jobs.json_files import read_json
from embedlm.jobs.user_cache import expanded, user_cache

__all__ = ["LINK", "gguf_folder", "gguf_tensors", "pools_last"]

LINK = "model.gguf"
"""The file's name in the folder that stands for it."""
FORM = 2
"""Raised whenever another folder would be made of the same file."""
_HEAD = 1 << 24
"""Bytes at a file's beginning, in which its settings lie: an archive may give the files of two
models one time of change."""
_OLLAMA = "ollama:"
_MODEL_LAYER = "application/vnd.ollama.image.model"


def gguf_folder(source: str, **hub: Any) -> str:
    """Return the folder that stands for a GGUF file; any other source is returned as it is.

    Args:
        source: a file, a folder that holds one and no config.json, "owner/name/file.gguf" on the
            hub, or "ollama:NAME[:TAG]" from Ollama's models.
        **hub: revision, token and cache_dir of a file on the hub.

    Raises:
        ModelError: there is no such file, or it is no language model that EmbedLM reads.
        MissingExtraError: the gguf package is not installed.
    """
    path = _file(source, hub)
    if path is None:
        return source
    status = path.stat()
    with path.open("rb") as handle:
        head = hashlib.sha256(handle.read(_HEAD)).hexdigest()
    identity = (FORM, transformers.__version__, str(path), status.st_size, status.st_mtime_ns, head)
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    folder = user_cache() / "gguf" / f"{_plain(path.stem)}-{key}"
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json", LINK)):
        file = read_gguf(path)
        config, pooling = config_of(file), pooling_of(file)
        check_splitting(file)
        check_vocabulary(file, config["vocab_size"])
        kept = "The GGUF file is as it was; set EMBEDLM_CACHE to a folder with space"
        with disk_errors(folder, kept):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(folder) as unfinished:
                _write_folder(unfinished, file, config, pooling)
    return str(folder)


def pools_last(source: str) -> bool:
    """Tell whether a folder stands for the GGUF file of a model that reads the last token."""
    pooling = Path(source) / "1_Pooling" / "config.json"
    if not ((Path(source) / LINK).is_file() and pooling.is_file()):
        return False
    return json.loads(pooling.read_text(encoding="utf-8"))["pooling_mode_lasttoken"] is True


def gguf_tensors(folder: Path, network: torch.nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Return the weights of a folder's GGUF file by the network's names of them.

    Args:
        folder: as `gguf_folder` made it.
        network: of the folder's config, on any device; says which weights are wanted.
        dtype: of the weights returned.

    Raises:
        ModelError: the file is damaged, or holds a tensor that the network has no place for.
    """
    file = read_gguf((folder / LINK).resolve())
    warn_of_unnamed(file)
    names = _names(file, network)
    _check_shapes(file, network, names)
    read = {"rope_freqs.weight"}  # became the config's scaling
    if not any(name.startswith("lm_head.") for name in names.values()):
        read.add("output.weight")
    unread = [t.name for t in file.tensors if t.name not in names and t.name not in read]
    if unread:
        raise ModelError(
            f"{file.path} holds {len(unread)} tensors that its network has no place for, e.g. "
            f"{unread[0]}; take the model as safetensors"
        )
    kind = ARCHITECTURES[file.architecture]
    config: Any = network.config
    state = {}
    for name, values in file.values(names):
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise ModelError(
                f"{file.path}: the tensor {name!r} holds NaN or infinity; get the file again"
            )
        if kind.permutes and ("attn_q." in name or "attn_k." in name):
            keys = "attn_k." in name
            heads = config.num_key_value_heads if keys else config.num_attention_heads
            values = _halves_apart(values, int(heads))
        if kind.norm_offset and name.endswith("norm.weight"):
            values = values - np.float32(kind.norm_offset)
        state[names[name]] = torch.from_numpy(values.copy()).to(dtype)
    return state


def _names(file: GgufFile, network: torch.nn.Module) -> dict[str, str]:
    """Return the network's name of each tensor that it has a place for, in the file or not."""
    package = require("gguf", "gguf")
    (kind,) = (key for key, name in package.MODEL_ARCH_NAMES.items() if name == file.architecture)
    table = package.get_tensor_name_map(kind, int(file.of_architecture("block_count")))
    names = {}
    for name in network.state_dict():
        whole = name if name.startswith(("model.", "lm_head.")) else f"model.{name}"
        stem, _, ending = whole.rpartition(".")
        names[f"{table.get_name(stem)}.{ending}"] = name
    return names


def _check_shapes(file: GgufFile, network: torch.nn.Module, names: dict[str, str]) -> None:
    """Refuse a file that lacks a tensor of its network, or has it in another shape."""
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    weights = network.state_dict()
    for there, name in names.items():
        if name.startswith("lm_head.") and there not in shapes:
            continue  # it is the table of embeddings
        if shapes.get(there) != tuple(weights[name].shape):
            has = f"has it as {list(shapes[there])}" if there in shapes else "lacks it"
            raise ModelError(
                f"the settings of {file.path} ask for the tensor {there!r} of the shape "
                f"{list(weights[name].shape)}, and the file {has}; get the file again"
            )


def _halves_apart(values: Any, heads: int) -> Any:
    """Return queries or keys with the two halves of each head apart, as transformers has them."""
    halves = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _write_folder(
    folder: Path, file: GgufFile, config: dict[str, Any], pooling: str | None
) -> None:
    """Write a file's config, tokenizer and pooling in the published layouts."""
    os.symlink(file.path, folder / LINK)
    _write_json(folder / "config.json", config)
    try:
        load_config(str(folder))
    except ModelError as error:
        reason = str(error).replace(f"{folder}/config.json", "").replace(str(folder), "")
        raise ModelError(
            f"the settings of {file.path} contradict each other: {reason.strip(': ')}"
        ) from error
    try:
        with quiet():
            gguf_tokenizer(file).save_pretrained(folder)
    except ModelError:
        raise
    except Exception as error:  # the libraries' own errors have no common base
        raise ModelError(
            f"the tokenizer of {file.path} cannot be built: {' '.join(str(error).split())[:300]}"
        ) from error
    if pooling is None:
        return
    kinds = ("Transformer", "Pooling", "Normalize")
    listing = [
        {
            "idx": number,
            "name": str(number),
            "path": "" if number == 0 else f"{number}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    _write_json(folder / "modules.json", listing)
    (folder / "1_Pooling").mkdir()
    width = {"word_embedding_dimension": config["hidden_size"]}
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{flag}": mode == pooling for mode, flag in modes.items()}
    _write_json(folder / "1_Pooling" / "config.json", width | flags)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _file(source: str, hub: Mapping[str, Any]) -> Path | None:
    """Return the GGUF file that a source names, or None."""
    path = expanded(source)
    if source.startswith(_OLLAMA):
        return _ollama_file(source.removeprefix(_OLLAMA))
    try:
        folder, file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # no name that a file could have
        return None
    if folder:
        files = [] if (path / "config.json").is_file() else sorted(_gguf_files(path))
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ModelError(
                f"the folder {source!r} holds several GGUF files; give one of: {names}"
            )
        return files[0].resolve() if files else None
    if file:
        with path.open("rb") as handle:
            begins = handle.read(4)
        return path.resolve() if begins == b"GGUF" or path.suffix.lower() == ".gguf" else None
    if not source.lower().endswith(".gguf"):
        return None
    if source.count("/") < 2 or source.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no file {source!r}; give a GGUF file, a model folder or a hub id"
        )
    owner, name, inner = source.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", inner, **hub)).resolve()
    except Exception as error:  # the hub's and the network's errors have no common base
        raise ModelError(
            f"cannot load {inner!r} of {owner}/{name} from the Hugging Face hub: "
            f"{' '.join(str(error).split())[:200]}. Check the id and the network, or give the path "
            "of a local file"
        ) from error


def _gguf_files(folder: Path) -> list[Path]:
    """Return a folder's GGUF files; links that lead nowhere are none."""
    return [path for path in folder.iterdir() if path.suffix.lower() == ".gguf" and path.is_file()]


def _ollama_file(name: str) -> Path:
    """Return the file of one of Ollama's models, by its manifest."""
    models = expanded(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,3}(:[\w.-]+)?", name) or ".." in name:
        raise ModelError(f"{name!r} is no name of an Ollama model; give NAME or NAME:TAG")
    path, _, tag = name.partition(":")
    parts = path.split("/")
    parts = {1: ["registry.ollama.ai", "library"], 2: ["registry.ollama.ai"]}.get(
        len(parts), []
    ) + parts
    manifest = models / "manifests" / Path(*parts) / (tag or "latest")
    if not manifest.is_file():
        raise ModelError(
            f"Ollama has no model {name!r}: there is no {manifest}. See `ollama list`; its models' "
            "folder is $OLLAMA_MODELS"
        )
    again = f"get it again: ollama pull {name}"
    layers = read_json(manifest, remedy=again)
    layers = layers.get("layers") if isinstance(layers, dict) else None
    layers = layers if isinstance(layers, list) else []
    kinds = [layer.get("mediaType") if isinstance(layer, dict) else None for layer in layers]
    if any(isinstance(kind, str) and kind.endswith(".adapter") for kind in kinds):
        raise ModelError(
            f"Ollama's model {name!r} has an adapter in GGUF, which EmbedLM does not read"
        )
    digests = [layers[i].get("digest") for i, kind in enumerate(kinds) if kind == _MODEL_LAYER]
    if len(digests) > 1:
        raise ModelError(
            f"Ollama's model {name!r} is in {len(digests)} parts, which EmbedLM does not join; "
            "take it as safetensors, or join its files: llama-gguf-split --merge FIRST_PART WHOLE"
        )
    digest = str(digests[0]) if digests else ""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ModelError(
            f"the manifest {manifest} cannot be read: it names no model file by its "
            f"SHA-256 digest; {again}"
        )
    blob = models / "blobs" / digest.replace(":", "-")
    if not blob.is_file():
        raise ModelError(f"Ollama's model {name!r} lacks {blob}; {again}")
    return Path(blob).resolve()


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:40]
