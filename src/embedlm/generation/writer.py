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
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from embedlm.backbone import with_head
from embedlm.backbone.direction import looking
from embedlm.backbone.probe import prove_attention
from embedlm.encode.inputs import check_texts
from embedlm.encode.plan import Pack
from embedlm.encode.run import pooled, tokens_of
from embedlm.errors import InputError, UnsupportedError
from embedlm.generation.generator import Sampling
from embedlm.generation.local import LocalGenerator, whole
from embedlm.prompt.render import Request

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
    """As `encode_document` gives it, (dim,)."""
    tokens: int
    """Of the document as it was read, its prompt included."""
    cache: Any
    """Keys and values of every layer."""


class Writer:
    """Writes with the network of an embedder: no second copy of the weights."""

    def __init__(self, model: Embedder, *, template: str | None = None, after: str = AFTER) -> None:
        """Take a model.

        Args:
            model: of a causal language model's architecture; its head is loaded if it was not.
            template: turns `{prompt}` into what is continued; None: the tokenizer's chat template,
                else GritLM's.
            after: the same after a document that was read.

        Raises:
            UnsupportedError: an encoder, or a checkpoint without its head.
            InputError: a template without `{prompt}`.
        """
        for given in (template, after):
            if given is not None and "{prompt}" not in given:
                raise InputError(f"the template {given!r} has no {{prompt}}")
        if model.backbone.head is None:
            model.backbone = with_head(model.backbone, model.recipe.backbone)
        kind = type(model.backbone.head).__name__
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or not model.backbone.packs:
            raise UnsupportedError(
                f"{model.backbone.name!r} ({kind}) does not write text; load a causal language "
                "model with its head"
            )
        with looking(model.backbone, "causal"):
            prove_attention(model.backbone, "causal")
        self.model, self.template, self.after = model, template, after

    def read(
        self, documents: str | Sequence[str], *, instruction: str | None = None
    ) -> list[ReadDocument]:
        """Embed documents and keep what was computed: one pass for both.

        The memory of a document is 2 x layers x tokens x width of the keys, in the model's dtype.
        """
        texts = check_texts(documents).items
        model = self.model
        given = None if instruction is None else [instruction] * len(texts)
        batch = model.renderer.render(texts, Request("document"), given)[0]
        return [self._read(text, batch, index) for index, text in enumerate(texts)]

    @torch.inference_mode()
    def _read(self, text: str, batch: Any, index: int) -> ReadDocument:
        backbone, recipe = self.model.backbone, self.model.recipe
        with whole(backbone):
            network: Any = backbone.model
            ids_1T = torch.tensor([batch.ids[index]], device=backbone.device)
            out = network(input_ids=ids_1T, use_cache=True)
        pack = Pack(np.array([index]))
        h_TD = out.last_hidden_state[0]
        tokens = tokens_of(batch, pack, recipe.pooling.over, h_TD.device)
        v_1D = pooled(h_TD, tokens, recipe.pooling, self.model.latent).float()
        if self.model.projection is not None:
            v_1D = self.model.projection(v_1D)
        if recipe.normalize:
            v_1D = torch.nn.functional.normalize(v_1D, dim=1)
        vector = v_1D[0].cpu().numpy()
        return ReadDocument(text, vector, ids_1T.shape[1], out.past_key_values)

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

        Args:
            prompt: the question or task.
            document: of `read`; it is not run again.
            max_new_tokens: at most; an answer ends with the model's end token.
            temperature: 0 takes the likeliest token each time.
            top_p: the share of the probability that tokens are drawn from.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"the prompt is {prompt!r}; give a text")
        sampling = Sampling(temperature, top_p, max_new_tokens)
        backbone = self.model.backbone
        with looking(backbone, "causal"), whole(backbone) as network:
            writer = LocalGenerator(network, backbone.tokenizer, backbone.name)
            row, cache, held = self._row(writer, prompt, document)
            writer.templated = True  # an answer may have several lines
            return writer.continue_after(cache, held, row, sampling)

    def _row(
        self, writer: LocalGenerator, prompt: str, document: ReadDocument | None
    ) -> tuple[list[int], Any, int]:
        """Return the ids to continue, and the cache before them with its length."""
        if document is not None:
            text = self.after.replace("{prompt}", prompt)
            ids = writer.tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids, copy.deepcopy(document.cache), document.tokens
        if self.template is None and writer.templated:
            text = writer.prompt([{"role": "user", "content": prompt}])
            return writer.tokenizer(text, add_special_tokens=False)["input_ids"], None, 0
        text = (self.template or CHAT).replace("{prompt}", prompt)
        return writer.tokenizer(text)["input_ids"], None, 0
