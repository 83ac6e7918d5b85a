"""Embeddings and text from one model; a document that was embedded need not be read again.

GritLM (Muennighoff et al., arXiv:2402.09906) embeds with attention in both directions and writes
causally. The keys and values of a document's embedding pass serve as the context of an answer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from embedlm.backbone import Backbone
from embedlm.backbone.probe import prove_attention
from embedlm.encode.call import serving_adapter
from embedlm.encode.inputs import check_texts
from embedlm.encode.options import Options
from embedlm.encode.plan import Pack
from embedlm.encode.run import pack_states
from embedlm.errors import InputError, UnsupportedError
from embedlm.generation.decoding import stored_keys
from embedlm.generation.generator import Sampling
from embedlm.generation.local import LocalGenerator
from embedlm.prompt.render import RenderedBatch, Request
from embedlm.schema.arguments import check_arguments

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["ReadDocument", "Writer"]

CHAT = "<|user|>\n{prompt}\n<|assistant|>\n"
"""GritLM's turn, for a tokenizer without a chat template."""
AFTER = (
    "\n<|user|>\n{prompt}\n\nAnswer the prior query while optionally using the context prior to it"
    "\n<|assistant|>\n"
)
"""GritLM's turn after a cached document."""


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """A document that has been read once: its vector, and what an answer needs of it."""

    text: str
    vector: npt.NDArray[np.float32]
    """The document's vector, equal to that of `encode_document`, (dim,)."""
    tokens: int
    """Number of tokens that were read, with those of the prompt."""
    cache: Any
    """Keys and values of every layer."""


class Writer:
    """Writes with the network of an embedder: no second copy of the weights."""

    def __init__(self, model: Embedder, *, template: str | None = None, after: str = AFTER) -> None:
        """Take a model.

        Args:
            model: of a causal language model's architecture; loaded with its head.
            template: turns `{prompt}` into what is continued; None: the tokenizer's chat template,
                else GritLM's.
            after: the same after a document that was read.

        Raises:
            UnsupportedError: an encoder, or a checkpoint without its head.
            InputError: a template without `{prompt}`.
        """
        for turn in (template, after):
            if turn is not None and "{prompt}" not in turn:
                raise InputError(f"the template {turn!r} has no {{prompt}}")
        kind = type(model.backbone.head).__name__
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or not model.backbone.packs:
            raise UnsupportedError(
                f"{model.backbone.name!r} ({kind}) does not write text; load a causal language "
                "model with its head"
            )
        prove_attention(model.backbone.twin(causal=True), "causal")
        self.model, self.template, self.after = model, template, after

    def read(
        self, documents: str | Sequence[str], *, instruction: str | None = None
    ) -> list[ReadDocument]:
        """Embed documents and keep what was computed: one pass for both.

        The memory of a document is 2 x layers x tokens x width of the keys, in the model's dtype.

        Raises:
            UnsupportedError: the recipe averages the vectors of several passes.
        """
        texts = check_texts(documents).texts
        recipe, renderer = self.model.recipe, self.model.renderer
        if recipe.transform is not None or len(renderer.templates("document")) > 1:
            raise UnsupportedError(
                f"the recipe {recipe.name!r} averages several passes over a document, and an "
                "answer goes on from one; take a recipe with one prompt"
            )
        instructions = None if instruction is None else [instruction] * len(texts)
        (batch,) = renderer.render(texts, Request("document"), instructions)
        return [self._read(text, batch, index) for index, text in enumerate(texts)]

    @torch.inference_mode()
    def _read(self, text: str, batch: RenderedBatch, index: int) -> ReadDocument:
        model, backbone = self.model, self.model.backbone
        adapter = serving_adapter(backbone, model.recipe, Options(role="document"))
        kept: list[Any] = []

        def run(rows: Sequence[Sequence[int]], **how: Any) -> Tensor:
            if kept:  # the prompt without its text
                return backbone.run(rows, adapter=adapter, **how)
            h_TD, cache = _run_with_cache(backbone, rows[0], how["layers"], adapter)
            kept.append(cache)
            return h_TD

        pack = Pack(np.array([index]))
        states = pack_states(run, model.readout, batch, pack, role="document")
        vector = model.vectors_of(states)[0]
        return ReadDocument(text, vector, len(batch.ids[index]), kept[0])

    def write(
        self,
        prompt: str,
        document: ReadDocument | None = None,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ) -> str:
        """Return what the model answers, with a document before the prompt or without one.

        Of a model with switchable adapters the base alone answers.

        Args:
            prompt: the question or task.
            document: of `read`; it is not run again.
            max_new_tokens: at most; an answer ends with the model's end token.
            temperature: 0 takes the likeliest token each time.
            top_p: the share of the probability that tokens are drawn from.

        Raises:
            InputError: no prompt, a number that nothing can be drawn by, or more tokens than the
                model sees.
        """
        check_arguments(
            "write", max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p
        )
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"the prompt is {prompt!r}; give a text")
        sampling = Sampling(temperature, top_p, max_new_tokens)
        backbone = self.model.backbone
        writer = LocalGenerator(backbone.language_model(), backbone.tokenizer, backbone.name)
        row, cache, held = self._row(writer, prompt, document)
        total, window = held + len(row) + max_new_tokens, writer.network.window
        if total > window:
            raise InputError(
                f"the document's {held} tokens, the prompt's {len(row)} and {max_new_tokens} new "
                f"ones are {total}, and the model sees {window}; shorten one of them "
                "(max_new_tokens)"
            )
        writer.templated = True  # an answer may have several lines
        return writer.continue_after(cache, held, row, sampling)

    def _row(
        self, writer: LocalGenerator, prompt: str, document: ReadDocument | None
    ) -> tuple[list[int], Any, int]:
        """Return the ids to continue, and the cache before them with its length."""
        control = writer.control
        hidden = control.hidden(prompt)
        if document is not None:
            text = self.after.replace("{prompt}", hidden)
            ids = control.ids(text, [prompt], special=False)
            return ids, copy.deepcopy(document.cache), document.tokens
        if self.template is None and writer.templated:
            return writer.ids([{"role": "user", "content": prompt}]), None, 0
        text = (self.template or CHAT).replace("{prompt}", hidden)
        return control.ids(text, [prompt], special=True), None, 0


def _run_with_cache(
    backbone: Backbone, ids: Sequence[int], layers: tuple[int, ...], adapter: str | None
) -> tuple[Tensor, Any]:
    """Run one row; return the mean of some hidden states, h_TD, and all layers' keys and values."""
    ids_1T = torch.tensor([list(ids)], device=backbone.device)
    inner = layers != (-1,)
    network: Any = backbone.language_model(causal=backbone.causal, adapter=adapter)
    out = network.base_model(input_ids=ids_1T, use_cache=True, output_hidden_states=inner)
    if not inner:
        return out.last_hidden_state[0], stored_keys(out)
    h_TD = torch.stack([out.hidden_states[layer][0] for layer in layers]).mean(0)
    return h_TD, stored_keys(out)
