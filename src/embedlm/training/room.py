"""Whether a stage's longest texts have room beside its prompt, asked before anything is trained."""

from __future__ import annotations

from pathlib import Path

from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.errors import EmbedLMError, InputError
from embedlm.persistence import network_place
from embedlm.prompt.render import Renderer
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Stage
from embedlm.training.objectives import EMBEDDING
from embedlm.training.plan import LocatedPlan, find_model
from embedlm.training.requests import length_of

__all__ = ["check_room", "renderer_of"]


def renderer_of(source: LocatedPlan, recipe: Recipe, data: str | Path | None) -> Renderer | None:
    """Return what writes the prompts of a plan's model; None where its tokenizer cannot be read.

    Loading the model tells why.
    """
    try:
        base, _ = split_adapters(find_model(source.plan.model, source.folder, data))
        return Renderer(load_tokenizer(network_place(base)), recipe.prompt)
    except EmbedLMError:
        return None


def check_room(stage: Stage, renderer: Renderer, kind: str) -> None:
    """Refuse a max_length within which a prompt leaves no room for a text.

    Args:
        stage: its data sets may have instructions of their own.
        renderer: of the model.
        kind: of the records.

    Raises:
        InputError: it says for which texts.
    """
    if not any(loss.kind in EMBEDDING for loss in stage.objective):
        return
    first, second = ("query", "document") if kind == "groups" else (None, None)
    for entry in stage.data:
        asked = {(first, entry.instruction), (second, entry.document_instruction or None)}
        for role, instruction in asked if kind == "groups" else {(first, entry.instruction)}:
            try:
                renderer.check_room(role, length_of(stage.max_length, role), instruction)
            except InputError as error:
                raise InputError(f"stage {stage.name!r}: {error}") from error
