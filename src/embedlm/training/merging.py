"""Merging: one model whose weights are the weighted mean of several models' weights.

This averages the checkpoints of a run, or mixes models as LM-Cocktail does (Xiao et al.,
arXiv:2311.13534), which weighs each model by how well it does on a few examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedlm.backbone.table import own_dtype
from embedlm.compress import check_no_adapters
from embedlm.data import read_records
from embedlm.embedder import Embedder
from embedlm.errors import InputError
from embedlm.jobs.names import check_apart, check_name, check_new
from embedlm.loader import load
from embedlm.schema.arguments import check_arguments
from embedlm.training.dev import dev_score, metric_of
from embedlm.training.trainable import modules_of

__all__ = ["check_output", "cocktail_weights", "merge"]

_NO_MEAN = "and the product of the means of their matrices is not the mean of the products"


def merge(
    models: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    save_dtype: str | None = None,
    device: Any = None,
) -> Embedder:
    """Write the weighted mean of models of one architecture, and return it.

    Args:
        models: folders or hub ids; recipe, prompts and tokenizer are those of the first.
        output: folder of the new model; it must be empty or not exist.
        weights: one weight for each model, scaled to a sum of 1; None gives all the same.
        save_dtype: the network's numbers in the folder, see `Embedder.save_pretrained`; None: those
            of the models' folders, and float32 where these differ. The mean is taken in float32.
        device: where the mean is computed.

    Raises:
        InputError: fewer than two models, models of different architectures, or an output folder
            that is one of the models or holds something else.
        UnsupportedError: models with switchable adapters.
    """
    check_arguments("save_pretrained", save_dtype=save_dtype)
    share = _shares(models, weights)
    check_output(models, output)
    whole = load(str(models[0]), device=device, dtype="float32")
    check_no_adapters(whole, _NO_MEAN, "average")
    whole.check_one_route("averaged with others")
    stored = {own_dtype(whole.backbone.name)}
    parameters = dict(modules_of(whole).named_parameters())
    with_head = whole.backbone.head is not None
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(share[0])
        for name, part in zip(models[1:], share[1:], strict=True):
            other = load(str(name), device=device, dtype="float32")
            check_no_adapters(other, _NO_MEAN, "average")
            other.check_one_route("averaged with others")
            _check_vocabulary(whole, other)
            stored.add(own_dtype(other.backbone.name))
            addends = dict(modules_of(other).named_parameters())
            if with_head != (other.backbone.head is not None):
                # A language-model head that only some of the models have is left out.
                with_head = False
                parameters, addends = _without_head(parameters), _without_head(addends)
            differing = [
                key for key, value in parameters.items() if _shape(addends.get(key)) != value.shape
            ]
            differing += [key for key in addends if key not in parameters]
            if differing:
                raise InputError(
                    f"{str(name)!r} does not fit {str(models[0])!r}: {differing[0]} has another "
                    "shape or is in one of them only; merge models of one architecture"
                )
            for key, parameter in parameters.items():
                parameter.add_(addends[key], alpha=part)
    head = whole.backbone.head if with_head else None
    whole = whole.with_backbone(whole.backbone.rebuilt(head=head))  # and without ranges
    shared = stored.pop() if len(stored) == 1 else None
    check_new(output)  # another process may have written it in the meantime
    whole.save_pretrained(output, save_dtype=save_dtype or shared)
    return load(str(output), device=device)


def _check_vocabulary(first: Embedder, other: Embedder) -> None:
    """Refuse two models whose rows of embeddings stand for different tokens."""
    a, b = first.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    differing = sorted(token for token in a.keys() | b.keys() if a.get(token) != b.get(token))
    if differing:
        raise InputError(
            f"{other.name!r} and {first.name!r} have different tokenizers, e.g. for the token "
            f"{differing[0]!r}; merge models of one tokenizer"
        )


def check_output(models: Sequence[str | Path], output: str | Path) -> None:
    """Refuse an output folder in which the merged model would overwrite something.

    Raises:
        InputError: the folder is, holds or lies in one of the models, or is not empty.
    """
    check_name(output, "output")
    check_apart(output, [name for name in models if Path(name).exists()])
    check_new(output)


def cocktail_weights(
    models: Sequence[str | Path],
    examples: str | Path,
    *,
    temperature: float = 0.1,
    device: Any = None,
) -> list[float]:
    """Return a weight for each model from its score s on examples: softmax(s / temperature).

    The paper uses the models' losses. Scores can also be compared between models that were trained
    with different objectives.

    Args:
        models: folders or hub ids.
        examples: a file of scored pairs (Spearman) or of queries with positives (MRR@10).
        temperature: a lower temperature gives the best model more weight.
        device: where the models are scored.

    Raises:
        InputError: the temperature is not above 0, or the examples are bare texts.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; give a number above 0")
    records = read_records(examples)
    metric_of(records)
    scores = [dev_score(load(str(name), device=device), records) for name in models]
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def _without_head(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: value for name, value in parameters.items() if not name.startswith("head.")}


def _shape(value: torch.Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def _shares(models: Sequence[str | Path], weights: Sequence[float] | None) -> list[float]:
    if len(models) < 2:
        raise InputError(f"{len(models) or 'no'} model was given; give two or more to merge")
    share = [1.0] * len(models) if weights is None else [float(weight) for weight in weights]
    if len(share) != len(models):
        raise InputError(
            f"{len(share)} weights were given for {len(models)} models; give one for each"
        )
    total = sum(share)
    if not math.isfinite(total) or abs(total) < 1e-12:
        raise InputError(f"the weights {share} add up to {total}; give weights with a sum above 0")
    return [weight / total for weight in share]
