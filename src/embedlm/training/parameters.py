"""Which parameters a stage trains, and how the layers behave while it does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from embedlm.backbone.adapters import add_adapters
from embedlm.backbone.layout import current, layout
from embedlm.errors import InputError, UnsupportedError, require
from embedlm.schema.tuning import Adapter, Stage
from embedlm.training.language import LANGUAGE
from embedlm.training.named_adapters import adapters_of
from embedlm.training.objectives import EMBEDDING
from embedlm.training.qlora import in_four_bits
from embedlm.training.trainable import TextRequest, TrainableEmbedder, dropout_rates

__all__ = [
    "attention_dropout",
    "attention_rates",
    "check_learns",
    "check_packages",
    "check_targets",
    "recompute_contexts",
    "set_trainable",
]


def set_trainable(model: TrainableEmbedder, stage: Stage) -> Any:
    """Enable the gradients of what a stage trains, and add its adapter.

    Returns:
        The model that PEFT wraps around the network, or None without such an adapter.

    Raises:
        InputError: nothing would be trained.
        UnsupportedError: the model already has switchable adapters, and the stage names none.
    """
    modules, names = model.modules(), adapters_of(stage)
    modules.requires_grad_(False)
    if names:
        _add_named_adapters(model, stage, names)
        return None
    if model.backbone.adapters is not None:
        raise UnsupportedError(
            f"stage {stage.name!r}: the model has switchable adapters "
            f"({', '.join(model.backbone.adapters.names)}); train one by name (data: adapter: "
            "NAME), or merge them into the model first"
        )
    tuner: Any = None
    others = [part for name, part in modules.items() if name not in ("backbone", "head")]
    if stage.train == "all":
        modules.requires_grad_(True)
    elif stage.train == "adapter":
        settings = stage.adapter or Adapter()
        check_targets(model.backbone.network, settings, f"stage {stage.name!r}")
        tuner = _with_adapter(model, settings)
        for part in others:
            part.requires_grad_(True)
    elif stage.train == "heads":
        for part in others:
            part.requires_grad_(True)
    else:
        for name, parameter in modules.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    if not any(parameter.requires_grad for parameter in modules.parameters()):
        raise InputError(
            f"stage {stage.name!r}: train: {stage.train} trains nothing, because this model has no "
            "such parameters; take all or adapter"
        )
    return tuner


def check_learns(model: TrainableEmbedder, stage: Stage) -> None:
    """Refuse a stage none of whose trained parameters reaches what its losses read.

    A mean over an inner layer does not depend on the layers above it, for example.

    Raises:
        InputError: nothing that is trained has a gradient.
    """
    outputs: list[tuple[str, Tensor]] = []
    if any(loss.kind in EMBEDDING for loss in stage.objective):
        adapters: Sequence[str | None] = adapters_of(stage) or [None]
        for adapter in adapters:
            plan = model.plan_chunks([TextRequest(("text",), None, adapter=adapter)])
            outputs.append(("the vectors", plan.chunks[0]()))
    for loss in stage.objective:
        if loss.kind in LANGUAGE:
            logits = model.backbone.logits(model.backbone.run([[0]]))
            outputs.append((f"the predictions of {loss.kind}", logits))
    for name, output in outputs:
        if not output.requires_grad:
            layer = model.embedder.recipe.pooling.layer
            raise InputError(
                f"stage {stage.name!r} cannot learn: {name} depend on no parameter that `train: "
                f"{stage.train}` trains (the recipe pools layer {layer}); train: all, or choose "
                "adapter targets below that layer"
            )


def check_packages(stage: Stage) -> None:
    """Refuse a stage that trains an adapter where the packages for it are not installed.

    Raises:
        MissingExtraError: it names what to install.
    """
    if stage.train in ("adapter", "query_encoder"):
        require("peft", "train")
        if stage.adapter is not None and stage.adapter.kind == "qlora":
            require("bitsandbytes", "qlora")


def _with_adapter(model: TrainableEmbedder, settings: Adapter) -> Any:
    if settings.kind == "qlora":
        in_four_bits(model.backbone.network, model.backbone.device)
    peft = require("peft", "train")
    # peft still asks transformers by a name that is to go.
    # And it warns of tied tables, which model_checks.py refuses where that matters.
    with warnings.catch_warnings(action="ignore"):
        tuner = peft.get_peft_model(model.backbone.network, _config(settings))
    for config in tuner.peft_config.values():
        if config.base_model_name_or_path == "None":  # when it saves, peft would ask the hub for it
            config.base_model_name_or_path = None
    model.rebuild()
    return tuner


def _add_named_adapters(model: TrainableEmbedder, stage: Stage, names: Sequence[str]) -> None:
    """Add a stage's switchable adapters, and enable their gradients only."""
    backbone, settings = model.backbone, stage.adapter or Adapter()
    check_targets(backbone.network, settings, f"stage {stage.name!r}")
    adapters = add_adapters(backbone.network, backbone.adapters, names, _config(settings))
    model.rebuild(adapters=adapters)
    backbone.network.requires_grad_(False)
    for parameter in adapters.parameters(names, backbone.network):
        parameter.requires_grad_(True)


def _config(settings: Adapter) -> Any:
    targets = settings.targets
    return require("peft", "train").LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_dora=settings.kind == "dora",
        bias="none",
    )


def check_targets(network: nn.Module, settings: Adapter, where: str) -> None:
    """Refuse adapter targets that a network has not; PEFT would leave out all but the last one.

    Raises:
        InputError: names them, and the network's linear layers.
    """
    if isinstance(settings.targets, str):
        return
    layers = dict(network.named_modules())
    unknown = [
        target
        for target in settings.targets
        if not any(name == target or name.endswith(f".{target}") for name in layers)
    ]
    if unknown:
        linear = {name.rsplit(".", 1)[-1] for name, part in layers.items() if _is_linear(part)}
        raise InputError(
            f"{where}: adapter targets {', '.join(unknown)} are not in this model: its linear "
            f"layers are called {', '.join(sorted(linear))}"
        )


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"  # GPT-2's


def attention_rates(network: nn.Module) -> list[tuple[Any, str, float]]:
    """Return the layers of a network that hold a rate of attention dropout, where, and the rate."""
    found: list[tuple[Any, str, float]] = []
    for name, module in network.named_modules():
        own = dropout_rates(module) if "attention" in type(module).__name__.lower() else {}
        if isinstance(module, nn.Dropout) and "att" in name.lower():
            own = {"p": module.p}
        found += [(module, key, before) for key, before in own.items()]
    return found


@contextmanager
def attention_dropout(model: TrainableEmbedder, rate: float | None) -> Iterator[None]:
    """Train with this attention dropout, and restore the model's own afterwards."""
    if rate is None:
        yield
        return
    changed = attention_rates(model.backbone.network)
    if rate and not changed:
        raise InputError("dropout has no effect: the model's attention has none; leave it out")
    for module, key, _ in changed:
        setattr(module, key, rate)
    model.rebuild()
    try:
        yield
    finally:
        for module, key, before in changed:
            setattr(module, key, before)
        model.rebuild()


def recompute_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed layer: for its forward pass and for its recomputation.

    The second restores the layout of the first, because another pack may be current by then.
    """
    now = current()
    return nullcontext(), layout(now) if now is not None else nullcontext()
