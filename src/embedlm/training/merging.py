"""One model of several: a weighted mean of their weights.

Averaged checkpoints of a run, and LM-Cocktail (Xiao et al., arXiv:2311.13534), whose weights come
from how well each model does on a few examples.

Shapes: K models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from embedlm.data import read_records
from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.loader import load
from embedlm.training.dev import dev_score
from embedlm.training.trainable import modules_of

__all__ = ["cocktail_weights", "merge"]


def merge(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    device: Any = None,
) -> Embedder:
    """Write and return the weighted mean of models of one architecture.

    Args:
        models: folders or hub ids; recipe, prompts and tokenizer are the first one's.
        output: the new model's folder.
        weights: one a model, scaled to a sum of 1; None weighs all alike.
        device: where it is computed.

    Raises:
        InputError: fewer than two models, or models that do not fit together.
    """
    share = _shares(models, weights)
    whole = load(str(models[0]), device=device, dtype="float32")
    into = dict(modules_of(whole).named_parameters())
    with torch.no_grad():
        for parameter in into.values():
            parameter.mul_(share[0])
        for name, part in zip(models[1:], share[1:], strict=True):
            found = dict(
                modules_of(load(str(name), device=device, dtype="float32")).named_parameters()
            )
            odd = [key for key, value in into.items() if _shape(found.get(key)) != value.shape]
            odd += [key for key in found if key not in into]
            if odd:
                raise InputError(
                    f"{str(name)!r} does not fit {str(models[0])!r}: {odd[0]} has another shape or "
                    "is in one of them only; merge models of one architecture"
                )
            for key, parameter in into.items():
                parameter.add_(found[key], alpha=part)
    whole.save_pretrained(output)
    return load(str(output), device=device)


def cocktail_weights(
    models: Sequence[str | Path],
    examples: str | Path,
    *,
    temperature: float = 0.1,
    device: Any = None,
) -> list[float]:
    """Return a weight for each model by its score s on examples: softmax(s / temperature).

    The paper takes the models' losses; a score is comparable between models that were trained with
    different objectives.

    Args:
        models: folders or hub ids.
        examples: a file of scored pairs (Spearman) or of queries with positives (MRR@10).
        temperature: the lower, the more the best model weighs.
        device: where they are scored.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; give a number above 0")
    records = read_records(examples)
    scores = [dev_score(load(str(name), device=device), records) for name in models]
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def _shape(value: torch.Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def _shares(models: Sequence[str | Path], weights: Sequence[float] | None) -> list[float]:
    if len(models) < 2:
        raise InputError(f"{len(models)} model(s) were given; merge two or more")
    given = [1.0] * len(models) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(models):
        raise InputError(f"{len(given)} weights were given for {len(models)} models")
    total = sum(given)
    if not math.isfinite(total) or abs(total) < 1e-12:
        raise InputError(f"the weights {given} have the sum {total}; give others")
    return [weight / total for weight in given]
