"""What of a model is trained in a stage, and how its layers behave meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from embedlm._tuning_schema import Adapter, Stage
from embedlm.backbone import attention
from embedlm.errors import InputError, UnsupportedError, require
from embedlm.training.student import Student

__all__ = ["dropped", "remembered", "set_trainable"]


def set_trainable(student: Student, stage: Stage) -> Any:
    """Turn gradients on where the stage trains, put its adapter on; return the adapter's model.

    Raises:
        InputError: nothing would be trained.
        UnsupportedError: a way of training that is not built.
    """
    modules = student.modules()
    modules.requires_grad_(False)
    tuner: Any = None
    others = [part for name, part in modules.items() if name not in ("backbone", "head")]
    if stage.train == "all":
        modules.requires_grad_(True)
    elif stage.train == "adapter":
        tuner = _with_adapter(student, stage.adapter or Adapter())
        for part in others:
            part.requires_grad_(True)
    elif stage.train == "heads":
        for part in others:
            part.requires_grad_(True)
    elif stage.train == "bias":
        for name, parameter in modules.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    else:
        raise UnsupportedError(
            f"stage {stage.name!r}: train: {stage.train} is not built yet; allowed: all, adapter, "
            "heads, bias"
        )
    if not any(parameter.requires_grad for parameter in modules.parameters()):
        raise InputError(
            f"stage {stage.name!r}: train: {stage.train} trains nothing, because this model has no "
            "such parameters; take all or adapter"
        )
    return tuner


def _with_adapter(student: Student, settings: Adapter) -> Any:
    if settings.kind == "bitfit":
        raise InputError("adapter kind bitfit is `train: bias`")
    if settings.kind == "qlora":
        raise UnsupportedError(
            "qlora keeps the base in 4 bits, which needs a CUDA device and bitsandbytes; take lora"
        )
    peft = require("peft", "train")
    targets: Any = settings.targets
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.kind == "dora",
        bias="none",
    )
    try:
        return peft.get_peft_model(student.backbone.model, config)
    except ValueError as error:
        names = sorted(
            {
                n.rsplit(".", 1)[-1]
                for n, m in student.backbone.model.named_modules()
                if _is_linear(m)
            }
        )
        raise InputError(
            f"adapter targets {targets!r} are not in this model: its linear layers are called "
            f"{', '.join(names)}"
        ) from error


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@contextmanager
def dropped(student: Student, rate: float | None) -> Iterator[None]:
    """Train with attention dropout of this rate, and put the model's own back."""
    changed: list[tuple[Any, str, float]] = []
    if rate is not None:
        for name, module in student.backbone.model.named_modules():
            own = getattr(module, "attention_dropout", None)
            if isinstance(own, float):
                changed.append((module, "attention_dropout", own))
                module.attention_dropout = rate
            elif isinstance(module, nn.Dropout) and "att" in name.lower():
                changed.append((module, "p", module.p))
                module.p = rate
    try:
        yield
    finally:
        for module, key, own in changed:
            setattr(module, key, own)


def remembered() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed layer: its forward pass, and when it runs again.

    The second knows the layout of the first: by then another pack may be under way, or none.
    """
    now = attention.current()
    return nullcontext(), attention.layout(now) if now is not None else nullcontext()
