"""Everything besides a call's options that vectors depend on: model, recipe and libraries."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from embedlm.backbone.prepacked import plain
from embedlm.jobs.software import versions

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = [
    "config_digest",
    "identity",
    "ranges_digest",
    "revision",
    "tokenizer_digest",
    "weights_digest",
]

_SAMPLE = 64
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_OF_FILES = ("transformers_version", "dtype", "torch_dtype", "use_cache")
"""Fields of a config that say nothing of what is computed, beside those that begin with _."""


def identity(model: Embedder, *, with_head: bool) -> dict[str, Any]:
    """Return what must be the same for two runs to give the same vectors.

    Weights are identified by a sample of every tensor: training changes all values of a
    tensor, or of some of its rows, and hashing every byte of a large model would take longer than
    many jobs.
    """
    backbone, parts = model.backbone, model.readout.parts.modules()
    statistics, writer = model.readout.statistics, model.writer_name
    return {
        "model": {
            "weights": weights_digest(backbone.network),
            "head": weights_digest(backbone.head)
            if with_head and backbone.head is not None
            else None,
            "parts": weights_digest(parts) if len(parts) else None,
            "tokenizer": tokenizer_digest(model.tokenizer),
            "dtype": str(backbone.dtype),
            "device": backbone.device.type,
            "limit": backbone.max_positions,
            "attention": backbone.implementation,
            "causal": backbone.causal,
            "statistics": None if statistics is None else _short(_bytes(statistics)),
            **({} if writer is None else {"writer": writer}),
            **({"routes": _routes(model, with_head)} if model.routes else {}),
        },
        "config": config_digest(backbone.network),
        "recipe": json.loads(model.recipe.model_dump_json()),
        "software": versions("embedlm", "torch", "transformers"),
    }


def _routes(model: Embedder, with_head: bool) -> dict[str, Any]:
    """Return what must be the same of the networks that read texts of each role."""
    each = {role: identity(one, with_head=with_head) for role, one in model.routes.items()}
    return {str(role): [one["model"], one["config"], one["recipe"]] for role, one in each.items()}


def revision(model: Embedder, *facts: Any) -> str:
    """Return a hash of a model's weights, config, tokenizer, recipe, ranges and further facts.

    Scores are kept under it: where it is the same, so are they, on whatever device.
    """
    own = identity(model, with_head=True)
    own["model"].pop("device")
    parts = [own["model"], own["config"], own["recipe"], ranges_digest(model), *facts]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def ranges_digest(model: Embedder) -> str:
    """Return what tells a model's fitted ranges from others."""
    forms = sorted(model.ranges.by_form.items())
    return _short(b"".join(f"{form}".encode() + values.tobytes() for form, values in forms))


def weights_digest(network: Any) -> str:
    """Return a hash of a sample of every tensor of a network: of each row and column, and between.

    It is the same in every number format that holds the values.
    """
    seen = hashlib.sha256()
    for name, value in network.named_parameters():
        whole = plain(value.detach())
        flat = whole.flatten()
        some = [flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE]]
        if whole.dim() > 1 and flat.numel():
            rows = whole.flatten(1)
            some += [rows[:, 0], rows[0]]
        seen.update(f"{name}{tuple(value.shape)}".encode())
        seen.update(torch.cat(some).float().cpu().numpy().tobytes())
    return seen.hexdigest()[:16]


def config_digest(network: Any) -> str:
    """Return a hash of what a network's config says of the computation."""
    config = network.config.to_dict()
    facts = {k: v for k, v in config.items() if not k.startswith("_") and k not in _OF_FILES}
    return _short(json.dumps(facts, sort_keys=True, default=str).encode("utf-8"))


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a hash of a tokenizer with what prompts take of it: special tokens, chat template."""
    special = [getattr(tokenizer, f"{name}_token", None) for name in _SPECIAL]
    template = getattr(tokenizer, "chat_template", None)
    facts = [tokenizer.backend_tokenizer.to_str(), special, template]
    return _short(json.dumps(facts, sort_keys=True, default=str).encode("utf-8"))


def _bytes(statistics: Any) -> bytes:
    values = [getattr(statistics, field.name) for field in fields(statistics)]
    return b"".join(np.asarray(0 if value is None else value).tobytes() for value in values)


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
