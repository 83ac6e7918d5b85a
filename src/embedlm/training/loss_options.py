"""The options of a loss in a plan: their names, the kinds of their values, and the values.

A value that a loss would refuse in its first step is refused before anything is loaded: the loss is
computed once, of a few random vectors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, Literal, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model

from embedlm.errors import InputError, closest
from embedlm.schema.base import validated
from embedlm.schema.tuning import Loss
from embedlm.training.batches import Batches
from embedlm.training.objectives import (
    EMBEDDING,
    MASKS,
    TEACHERS,
    BatchFacts,
    head_of,
    loss_of,
)

__all__ = ["check_options", "check_values", "options_of"]

Replace = Literal["bert", "all"]
_LANGUAGE: dict[str, dict[str, Any]] = {
    "mntp": {"replace": (Replace, "bert")},
    "mlm": {"replace": (Replace, "bert")},
}
"""Options of language-modelling losses: their kind and default."""
_WHOLE = (
    "embedding_distill",
    "flops",
    "late_interaction",
    "m3_self_distill",
    "uniformity",
)
"""Losses that are not applied to vectors that are cut."""
_TEACHERS: dict[str, Any] = {
    "teacher": (str, Field("", min_length=1)),
    "reranker": (str, Field("", min_length=1)),
    "teachers": (list[str], Field([], min_length=1)),
}
_ROWS, _WIDTH = 3, 8


def check_options(loss: Loss) -> None:
    """Refuse an option that a loss does not have, or one of a kind that it does not take.

    Raises:
        InputError: it says which options there are.
        RecipeError: a value of a kind that the option does not take.
    """
    known = options_of(loss.kind)
    named = [*loss.options, *(["temperature"] if loss.temperature is not None else [])]
    for name in named:
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise InputError(
                f"objective {loss.kind!r} has no option {name!r}; allowed: {allowed}."
                + closest(name, sorted(known))
            )
    if len(set(named)) < len(named):
        raise InputError(
            f"objective {loss.kind!r} has two temperatures, {loss.temperature:g} and, among its "
            f"options, {loss.options['temperature']}; give one"
        )
    if loss.kind in EMBEDDING:
        _check_head(loss)
    if loss.matryoshka:
        _check_matryoshka(loss)
    _check_kinds(loss, known)
    named = [name for name in TEACHERS if name in loss.options]
    if len(named) > 1:
        raise InputError(
            f"objective {loss.kind!r} names a model as {' and as '.join(named)}; give one of them"
        )


def _check_head(loss: Loss) -> None:
    own = EMBEDDING[loss.kind].head
    heads = ("dense", "sparse") if own in ("dense", "sparse") else (own,)
    if head_of(loss) not in heads:
        raise InputError(
            f"objective {loss.kind!r} cannot read the head {head_of(loss)!r}; allowed: "
            f"{', '.join(heads)}"
        )


def _check_matryoshka(loss: Loss) -> None:
    """Refuse smaller widths where a loss reads nothing that is cut to them."""
    if loss.kind in EMBEDDING and loss.kind not in _WHOLE and head_of(loss) == "dense":
        return
    raise InputError(
        f"objective {loss.kind!r} takes no matryoshka, which applies a loss to dense vectors that "
        "are cut; give it to a loss such as info_nce or cosent"
    )


def _check_kinds(loss: Loss, known: Mapping[str, Any]) -> None:
    """Refuse values of a kind that an option does not take."""
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    fields = {name: known[name] for name in loss.options}
    model: type[BaseModel] = create_model(loss.kind, __config__=strict, **fields)
    validated(model, loss.options, f"objective {loss.kind!r}")


def options_of(kind: str) -> dict[str, Any]:
    """Return the options of a loss: the kind of value of each, and its default."""
    if kind not in EMBEDDING:
        return _LANGUAGE.get(kind, {})
    needs = EMBEDDING[kind]
    hints = get_type_hints(needs.function)
    parameters = inspect.signature(needs.function).parameters.values()
    options: dict[str, Any] = {
        p.name: (hints[p.name], p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in MASKS
    }
    options["head"] = (str, needs.head)
    if needs.teacher:
        options |= _TEACHERS
    elif needs.guide:
        options["teacher"] = _TEACHERS["teacher"]
    return options


def check_values(loss: Loss, batches: Batches) -> None:
    """Refuse values that a loss of the stage's batches would refuse in its first step.

    Raises:
        InputError: it says what the loss says, or that its value is no finite number.
    """
    plain = loss.model_copy(update={"weight": 1.0})
    for in_batch in sorted({data.in_batch_negatives for data in batches.data}):
        facts, v_NX = _random_batch(loss, batches, in_batch=in_batch)
        try:
            value = float(loss_of([plain], facts, v_NX)[0])
        except InputError as error:
            raise InputError(f"objective {loss.kind!r}: {error}") from error
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"objective {loss.kind!r} cannot be computed with the options {loss.options}: "
                f"{reason}"
            ) from error
        if not math.isfinite(value):
            raise InputError(
                f"objective {loss.kind!r} gives {value} with the temperature {loss.temperature} "
                f"and the options {loss.options}; give values nearer to the defaults"
            )


def _random_batch(
    loss: Loss, batches: Batches, *, in_batch: bool
) -> tuple[BatchFacts, torch.Tensor]:
    """Return random vectors in the shape of a small batch, v_NX, and the facts of the batch."""
    generator = torch.Generator().manual_seed(0)
    group = batches.negatives + 1 if batches.kind == "groups" else 1
    width = 2 * max((_WIDTH, *loss.matryoshka))
    widths = {kind: width for kind in head_of(loss).split("+")}
    if "multi_vector" in widths:
        widths["multi_vector"] = 2 * width
    count = _ROWS * (1 + group)
    v_NX = torch.rand(count, sum(widths.values()), generator=generator)
    own_BB = torch.eye(_ROWS, dtype=torch.bool)
    first_BG = torch.arange(group) == 0
    facts = BatchFacts(
        rows=_ROWS,
        kind=batches.kind,
        in_batch=in_batch,
        width=widths,
        longest=2,
        labels_B=torch.linspace(0, 1, _ROWS),
        teacher_BG=torch.rand(_ROWS, group, generator=generator),
        guide_ND=torch.rand(count, width, generator=generator),
        positives_BM=own_BB.repeat_interleave(group, dim=1) & first_BG.repeat(_ROWS),
        equal_queries_BB=own_BB,
    )
    return facts, v_NX
