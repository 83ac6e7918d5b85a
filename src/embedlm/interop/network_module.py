"""The one module of a bridged SentenceTransformer: texts to features, features to vectors.

Shapes: B texts of a batch, L tokens of the longest, T tokens of all, D width of a state or vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import embedlm
from embedlm.encode.executor import Executor
from embedlm.encode.inputs import check_texts
from embedlm.encode.plan import plan
from embedlm.encode.run import Run, pack_states
from embedlm.errors import InputError, UnsupportedError
from embedlm.interop.prompts import Voice
from embedlm.prompt.render import RenderedBatch, Request
from embedlm.prompt.segments import SEGMENT_ID
from embedlm.readout import Readout
from embedlm.readout.heads import requested_heads
from embedlm.readout.quantized import Ranges

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["EmbedderModule"]

_TEXT = SEGMENT_ID["text"]
_REFUSED = ("model_kwargs", "processor_kwargs", "config_kwargs")


class EmbedderModule(nn.Module):
    """An Embedder as a module of sentence-transformers.

    Inference on whole lists goes to the Embedder's engine. `forward` is the differentiable path:
    the same network, the same readout, one batch at a time.

    The network's weights stay frozen, and may lie packed for fast inference, until a caller moves
    the module, lists its parameters or switches it to training: then they become plain and
    trainable.
    """

    save_in_root = True

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder
        self.network = embedder.backbone.network
        self.parts = embedder.readout.parts.modules()
        self.listening = False
        """Whether moving, listing or training counts as a sign of training; not while
        sentence-transformers builds the model around this module."""
        self._trainable = False

    # -- facts that sentence-transformers asks for ----------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.embedder.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """The number of tokens that a rendered text may have; None: no limit."""
        return self.embedder.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int | None) -> None:
        recipe = self.embedder.recipe.override({"prompt.max_length": tokens})
        self.embedder = self.embedder.with_recipe(recipe)

    def get_embedding_dimension(self) -> int:
        """Return the width of a vector."""
        return self.embedder.dim

    # -- texts to features ----------------------------------------------------------------------

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        *,
        max_length: int | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
        task: str | None = None,
    ) -> dict[str, Tensor]:
        """Return the token ids of texts, the mask of real tokens, and each token's segment.

        Args:
            inputs: strings, or mappings with `text`.
            prompt: what stands before each text; None: nothing, or the recipe's own template where
                that is more than a prefix.
            max_length: the number of tokens of a rendered text.
            processing_kwargs: refused; the recipe says how texts are processed.
            task: has no effect; a model has one network for all tasks.

        Raises:
            InputError: inputs that are no texts, or `processing_kwargs`.
            UnsupportedError: a recipe that averages several prompts or fills queries up.
        """
        self.check_processing(processing_kwargs)
        voice = Voice.of(self.embedder, prompt)
        texts = check_texts(voice.led(inputs)).texts
        request = Request(voice.role, None, max_length)
        batches = voice.embedder.renderer.render(texts, request)
        if len(batches) > 1 or self.embedder.recipe.transform is not None:
            raise UnsupportedError(
                f"recipe {self.embedder.recipe.name!r} averages several prompts or rewritten "
                "texts, which are not one row of tokens; call encode for sentence embeddings"
            )
        (batch,) = batches
        if any(batch.unseen):
            raise UnsupportedError(
                f"recipe {self.embedder.recipe.name!r} fills queries up with mask tokens that no "
                "token looks at; call encode for sentence embeddings"
            )
        return _features(batch)

    @staticmethod
    def check_processing(processing_kwargs: Mapping[str, Any] | None) -> None:
        """Refuse options for a processor that the model does not have."""
        if processing_kwargs:
            raise InputError(
                f"processing_kwargs {dict(processing_kwargs)!r} cannot be honoured: the recipe "
                "says how texts are processed; give max_length, or another recipe"
            )

    def tokenize(self, texts: Sequence[Any], **options: Any) -> dict[str, Tensor]:
        """Return what `preprocess` returns (the older name)."""
        return self.preprocess(texts, **options)

    # -- features to vectors --------------------------------------------------------------------

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (B, D) and `token_embeddings` (B, L, D) to the features."""
        if self.training or torch.is_grad_enabled():
            self.make_trainable()
        seen_BL = features["attention_mask"].bool()
        batch = _batch(features, seen_BL)
        readout, run = self._dense(), self._run()
        pieces: list[Tensor] = []
        items: list[int] = []
        tokens: list[Tensor] = []
        for pack in plan(batch.ids, self.embedder.executor.budget(), share=False):
            states = pack_states(run, readout, batch, pack)
            pieces.append(readout.gradient_rows(states, max(map(len, batch.ids))))
            items += pack.items.tolist()
            tokens += torch.split(states.h_TD, [len(row) for row in states.rows])
        position_B = torch.tensor(items).argsort()
        vectors_BD = torch.cat(pieces)[position_B.to(pieces[0].device)]
        h_TD = torch.cat([tokens[index] for index in position_B.tolist()])
        token_BLD = h_TD.new_zeros(*seen_BL.shape, h_TD.shape[-1])
        token_BLD = token_BLD.masked_scatter(seen_BL.to(h_TD.device)[..., None], h_TD)
        return {
            **features,
            "sentence_embedding": self._finished(vectors_BD),
            "token_embeddings": token_BLD,
        }

    def _run(self) -> Run:
        """Return how the network runs, with the one switchable adapter where there is one.

        Raises:
            UnsupportedError: several adapters, of which features cannot say the one.
        """
        adapters = self.embedder.adapters
        if len(adapters) > 1 or self.embedder.recipe.backbone.adapter_roles:
            raise UnsupportedError(
                f"{self.embedder.name!r} has the adapters {', '.join(adapters)}, and features do "
                "not say which one runs; call encode, or load the model with one adapter merged"
            )
        return partial(self.embedder.backbone.run, adapter=adapters[0] if adapters else None)

    def _dense(self) -> Readout:
        """Return the readout with a dense head alone."""
        heads = requested_heads("dense", self.embedder.recipe, several=False)
        return self.embedder.readout.with_heads(heads)

    def _finished(self, vectors_BD: Tensor) -> Tensor:
        """Return vectors as `finish_vectors` does, with a gradient."""
        statistics = self.embedder.readout.statistics
        if statistics is not None and statistics.components_KD is not None:
            common_KD = torch.from_numpy(statistics.components_KD).to(vectors_BD)
            vectors_BD = vectors_BD - vectors_BD @ common_KD.T @ common_KD
        recipe = self.embedder.recipe
        if recipe.normalize and not (recipe.dim and recipe.renormalize):
            vectors_BD = nn.functional.normalize(vectors_BD, dim=1)
        vectors_BD = vectors_BD[:, : recipe.dim]
        if recipe.normalize and recipe.dim and recipe.renormalize:
            vectors_BD = nn.functional.normalize(vectors_BD, dim=1)
        return vectors_BD

    # -- training and moving --------------------------------------------------------------------

    def make_trainable(self) -> None:
        """Give the network plain weights that learn; done once, at the first sign of training."""
        if self._trainable or not self.listening or self.embedder.backbone.quantised:
            return
        self._trainable = True
        self.embedder.ranges = Ranges()  # those of the vectors before training
        self.embedder.executor.plain()
        for part in (self.network, self.parts):
            part.requires_grad_(True)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters, plain and trainable."""
        self.make_trainable()
        return super().named_parameters(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules; their weights must be plain, since parameters are found by them."""
        self.make_trainable()
        yield from super().named_modules(*args, **kwargs)

    def train(self, mode: bool = True) -> EmbedderModule:
        """Switch dropout on or off."""
        if mode:
            self.make_trainable()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> EmbedderModule:
        """Move or cast the weights; the embedder's views of the network are made anew."""
        if self.embedder.backbone.quantised:
            raise UnsupportedError(
                f"{self.embedder.name!r} runs in {self.embedder.backbone.quantised} and cannot be "
                "moved or cast; load it with the device and dtype that you want"
            )
        self.make_trainable()
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        backbone = self.embedder.backbone.rebuilt()
        self.embedder.readout = self.embedder.readout.with_backbone(backbone)
        self.embedder.executor = Executor(backbone)
        self.embedder.executor.plain()
        return self

    # -- files ----------------------------------------------------------------------------------

    def save(self, folder: str, **_: Any) -> None:
        """Save the embedder."""
        self.embedder.save_pretrained(folder)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> EmbedderModule:
        """Load a saved embedder, when sentence-transformers itself opens its folder.

        Raises:
            UnsupportedError: options for classes of transformers that are not used here.
        """
        unused = [name for name in _REFUSED if options.get(name)]
        if unused:
            raise UnsupportedError(
                f"{', '.join(unused)} cannot be honoured for a model that EmbedLM opens; call "
                "embedlm.load with the options that you want, and as_sentence_transformer()"
            )
        return cls(embedlm.load(Path(model_name_or_path) / subfolder))


def _features(batch: RenderedBatch) -> dict[str, Tensor]:
    """Return a rendered batch as tensors, padded on the right."""
    rows = [torch.tensor(ids, dtype=torch.long) for ids in batch.ids]
    segments = [torch.as_tensor(marks) for marks in batch.segments]
    ones = [torch.ones_like(row) for row in rows]
    padded = [pad_sequence(each, batch_first=True) for each in (rows, ones, segments)]
    return dict(zip(("input_ids", "attention_mask", "segments"), padded, strict=True))


def _batch(features: Mapping[str, Any], seen_BL: Tensor) -> RenderedBatch:
    """Return features as a rendered batch; without segments, every token is of the text."""
    ids_BL = features["input_ids"]
    segments_BL = features.get("segments")
    if segments_BL is None:
        segments_BL = torch.full_like(ids_BL, _TEXT, dtype=torch.uint8)
    pairs = list(zip(ids_BL, segments_BL, seen_BL, strict=True))
    return RenderedBatch(
        [ids_L[seen_L].tolist() for ids_L, _, seen_L in pairs],
        [marks_L[seen_L].cpu().numpy() for _, marks_L, seen_L in pairs],
        [""] * len(pairs),
    )
