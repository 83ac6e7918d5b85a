"""Runs packs through a backbone: from the rows of a rendered batch to what a readout looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedlm.backbone.images import Pixels
from embedlm.backbone.layout import Kept
from embedlm.encode.plan import Pack
from embedlm.errors import InputError
from embedlm.prompt.render import SEGMENT_ID, RenderedBatch
from embedlm.readout import PackStates, Readout
from embedlm.readout.states import TemplateStates

__all__ = ["Run", "pack_states", "template_states"]

Rows = Sequence[Sequence[int]]


class Run(Protocol):
    """Runs rows of token ids; `Backbone.run` with some of its arguments given."""

    def __call__(
        self,
        rows: Rows,
        *,
        prefix: int = 0,
        layers: tuple[int, ...] = (-1,),
        unseen: Sequence[int] = (),
        kept: Kept | None = None,
        positions: Rows | None = None,
        images: Sequence[Pixels] = (),
    ) -> Tensor:
        """Return the states of the prefix and then of each row's own tokens, h_TD."""


def pack_states(
    run: Run,
    readout: Readout,
    batch: RenderedBatch,
    pack: Pack,
    *,
    kept: Kept | None = None,
    role: str | None = None,
    words: Sequence[npt.NDArray[np.int64] | None] | None = None,
    denoise: bool | None = None,
) -> PackStates:
    """Run a pack and return its states with all that a readout needs to know of them.

    Args:
        run: runs rows of token ids.
        readout: says which layers are read.
        batch: the rendered texts.
        pack: which of them run.
        kept: what the packs of one template keep of their prefix.
        role: of the texts.
        words: for each text of the batch the vocabulary ids of its own words.
        denoise: also run the prompts without their texts; None: where the pooling takes them out.
    """
    items = pack.items.tolist()
    rows = [batch.ids[item] for item in items]
    unseen = [batch.unseen[item] for item in items] if batch.unseen else ()
    images = [batch.pixels[item] for item in items] if batch.pixels else ()
    prefix, layers = pack.prefix, readout.layers
    h_TD = run(rows, prefix=prefix, layers=layers, unseen=unseen, kept=kept, images=images)
    denoise = readout.pooling.denoise if denoise is None else denoise
    return PackStates(
        h_TD,
        rows,
        [batch.segments[item] for item in items] if batch.segments else (),
        pack.prefix,
        role,
        None if words is None else [words[item] for item in items],
        template_states(run, readout, batch, items) if denoise else None,
    )


def template_states(
    run: Run, readout: Readout, batch: RenderedBatch, items: Sequence[int]
) -> TemplateStates:
    """Run each prompt without its text; what follows the text keeps the positions it has with it.

    Raises:
        InputError: a text without a prompt around it.
    """
    around = [np.flatnonzero(batch.segments[item] != SEGMENT_ID["text"]) for item in items]
    if not all(map(len, around)):
        raise InputError(
            "pooling.denoise takes the prompt's own state out of a vector, and there is no prompt "
            "around the text; set it to false or give a template"
        )
    prompts = [
        tuple((batch.ids[item][position], position) for position in positions.tolist())
        for item, positions in zip(items, around, strict=True)
    ]
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    segments = {
        prompt: batch.segments[item][positions]
        for prompt, item, positions in zip(prompts, items, around, strict=True)
    }
    rows = [[token for token, _ in prompt] for prompt in number]
    positions = [[position for _, position in prompt] for prompt in number]
    h_TD = run(rows, layers=readout.layers, positions=positions)
    states = PackStates(h_TD, rows, [segments[prompt] for prompt in number])
    prompt_B = torch.tensor([number[prompt] for prompt in prompts], device=h_TD.device)
    return TemplateStates(states, prompt_B)
