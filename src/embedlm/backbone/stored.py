"""The numbers in which a folder's weights are stored: floats, or int8 with one scale a row.

W[o, i] = q[o, i] s[o] with q = round(W / s) in -127..127: symmetric quantisation by output channel
(Dettmers et al., arXiv:2208.07339, without its outlier columns). Of a few scales at and below the
row's maximum divided by 127, s is the one that leaves the least square error.

A matrix `NAME` is stored as int8 with a leading axis of 1, and its scales as `NAME_scale` in
float32. The axis makes every other reader refuse the weights: without it, transformers would load
the integers as if they were the weights. `quantization_config` in config.json names the form.

Shapes: O rows (outputs, tokens), I numbers a row.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from embedlm.backbone.tensors import read_tensors
from embedlm.errors import ModelError
from embedlm.jobs.atomic import TEMPORARY
from embedlm.jobs.json_files import read_object, write_json

__all__ = ["expanded_tensors", "is_stored_by_row", "quantize_rows", "store_weights"]

METHOD = "embedlm_int8_rows"
FORM = 1
"""Raised whenever the form changes."""
_KEY = "quantization_config"
_WEIGHTS = "model.safetensors"
_SCALE = "_scale"
_SHARES = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85, 0.825, 0.8, 0.775, 0.75)
"""Scales that are tried, as shares of the one that keeps the row's maximum."""


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 rows and their scales, (O, I) and (O,) in float32.

    Raises:
        ModelError: NaN or infinity among the weights.
    """
    weight_OI = weight_OI.detach().float()
    top_O = weight_OI.abs().amax(1)
    if not bool(torch.isfinite(top_O).all()):
        raise ModelError("the weights hold NaN or infinity and cannot be stored as int8")
    largest_O = top_O.clamp_min(torch.finfo(torch.float32).tiny) / 127
    best_O, scale_O = torch.full_like(top_O, torch.inf), largest_O
    for share in _SHARES:
        tried_O = (largest_O * share).clamp_min(torch.finfo(torch.float32).tiny)
        rounded_OI = _rounded(weight_OI, tried_O)
        error_O = rounded_OI.mul_(tried_O[:, None]).sub_(weight_OI).square_().sum(1)
        scale_O = torch.where(error_O < best_O, tried_O, scale_O)
        best_O = torch.minimum(error_O, best_O)
    return _rounded(weight_OI, scale_O).to(torch.int8), scale_O


def _rounded(weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    return (weight_OI / scale_O[:, None]).round_().clamp_(-127, 127)


# -- writing -----------------------------------------------------------------------------------


def store_weights(folder: Path, save_dtype: str) -> None:
    """Store the weights of a folder, as transformers wrote it, in other numbers.

    Args:
        folder: holds config.json and model.safetensors, whole or in parts.
        save_dtype: float32, bfloat16, float16, or int8 for matrices stored by row (all else keeps
            its numbers).

    Raises:
        ModelError: weights that the numbers cannot hold.
    """
    index = folder / f"{_WEIGHTS}.index.json"
    parts = sorted(folder.glob("model*.safetensors"))
    places: dict[str, str] = {}
    size = 0
    for part in parts:
        with safe_open(str(part), "pt") as file:
            stored: dict[str, Tensor] = {}
            for name in file.keys():  # noqa: SIM118
                stored |= _stored(name, file.get_tensor(name), save_dtype)
        places |= dict.fromkeys(stored, part.name)
        size += sum(tensor.nbytes for tensor in stored.values())
        unfinished = part.with_name(part.name + TEMPORARY)
        save_file(stored, unfinished, {"format": "pt"})
        os.replace(unfinished, part)  # what was read is mapped from the file of before
    if index.is_file():
        content = read_object(index)
        content["metadata"] = {**content.get("metadata", {}), "total_size": size}
        write_json(index, {**content, "weight_map": places})
    config = read_object(folder / "config.json")
    if save_dtype == "int8":
        config[_KEY] = {"quant_method": METHOD, "form": FORM}
    else:
        config = _in_dtype(config, save_dtype)
    write_json(folder / "config.json", config)


def _stored(name: str, tensor: Tensor, save_dtype: str) -> dict[str, Tensor]:
    """Return what is stored for a tensor."""
    if not tensor.is_floating_point():
        return {name: tensor}
    if save_dtype == "int8":
        if tensor.ndim < 2:
            return {name: tensor}
        rows_OI, scale_O = quantize_rows(tensor.flatten(0, -2))
        rows = rows_OI.view(1, *tensor.shape).contiguous()
        return {name: rows, name + _SCALE: scale_O.view(tensor.shape[:-1]).contiguous()}
    changed = tensor.to(getattr(torch, save_dtype)).contiguous()
    if bool(torch.isinf(changed).any()):
        raise ModelError(
            f"{name} holds numbers that {save_dtype} cannot; save in bfloat16 or float32"
        )
    return {name: changed}


def _in_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config, and those inside it, that name a dtype of the weights."""
    changed = {
        key: _in_dtype(value, dtype) if isinstance(value, dict) and "dtype" in value else value
        for key, value in config.items()
    }
    return {**changed, "dtype": dtype}


# -- reading -----------------------------------------------------------------------------------


def is_stored_by_row(source: str, config: Mapping[str, Any]) -> bool:
    """Tell whether the weights of a folder or hub id are stored as int8 by row.

    Args:
        source: folder or hub id, for messages.
        config: the content of its config.json.

    Raises:
        ModelError: they are, in a form that is not known here.
    """
    settings = config.get(_KEY)
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or not method.startswith("embedlm"):
        return False
    form = (method, settings.get("form"))  # type: ignore[union-attr]
    if form != (METHOD, FORM):
        raise ModelError(
            f"the weights in {source!r} are stored in the form {form[0]} {form[1]}, and this "
            f"version reads {METHOD} {FORM}; take a newer version of embedlm (pip install -U "
            "embedlm), or save the model again"
        )
    return True


def expanded_tensors(source: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights of a folder or hub id that are stored by row, expanded.

    The file is mapped into memory, and only the expanded weights take some.

    Args:
        source: folder or hub id.
        dtype: of the weights returned.

    Raises:
        ModelError: a file that is missing or damaged, or rows and scales that do not fit.
    """
    stored = read_tensors(source, _WEIGHTS)
    if not stored:
        raise ModelError(f"{source!r} has no {_WEIGHTS}, which its config.json says is there")
    rows = {name for name, tensor in stored.items() if tensor.dtype == torch.int8}
    scales = {name + _SCALE for name in rows}
    tensors = {}
    for name, tensor in stored.items():
        if name in scales:
            continue
        if name in rows:
            tensors[name] = _expanded(source, name, tensor, stored.get(name + _SCALE), dtype)
        else:
            # Copied, so that the network does not lie in a file that may change.
            kept = dtype if tensor.is_floating_point() else tensor.dtype
            tensors[name] = tensor.to(kept, copy=True)
    return tensors


def _expanded(
    source: str, name: str, rows: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return a matrix of its stored rows and their scales."""
    wrong = ""
    if scale is None:
        wrong = f"it has no scales ({name}{_SCALE} is missing)"
    elif rows.ndim < 3 or rows.shape[0] != 1 or scale.shape != rows.shape[1:-1]:
        wrong = f"rows of the shape {tuple(rows.shape)} have scales of {tuple(scale.shape)}"
    elif not scale.is_floating_point() or not bool((scale > 0).all() & scale.isfinite().all()):
        wrong = "its scales are not all numbers above 0"
    if wrong or scale is None:
        raise ModelError(
            f"the weights in {source!r} are damaged: {name} is stored as int8 by row, and {wrong}; "
            "get the model again, or save it again"
        )
    return (rows[0].float() * scale.float()[..., None]).to(dtype)
