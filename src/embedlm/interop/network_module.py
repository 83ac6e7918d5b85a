"""The first module of a bridged SentenceTransformer: texts to features, features to states.

Shapes: B texts of a batch, L tokens of the longest, T tokens of all, D width of a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

import embedlm
from embedlm.encode.executor import Executor
from embedlm.encode.inputs import check_texts
from embedlm.encode.plan import plan
from embedlm.encode.run import Run
from embedlm.errors import InputError, UnsupportedError, require
from embedlm.interop.features import batch_of, features_of, seen_of
from embedlm.interop.opening import refuse_options
from embedlm.interop.prompts import Voice
from embedlm.interop.readout_module import vectors_of
from embedlm.persistence.expressible import prefixes_of
from embedlm.prompt.render import RenderedBatch, Request
from embedlm.readout.quantized import Ranges

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

# Its attributes are made by its own __init__, which is not called here: its types do not hold.
Transformer: Any = require("sentence_transformers.base.modules", "eval").Transformer

__all__ = ["EmbedderModule"]

_REFUSED = ("model_kwargs", "processor_kwargs", "config_kwargs")
_TRUNCATION = {"truncation": (True, "longest_first"), "padding": (True, "longest")}
"""Options for a tokenizer that say what is done anyway."""


class EmbedderModule(Transformer):
    """An Embedder as a module of sentence-transformers.

    Inference on whole lists goes to the Embedder's engine. `forward` is the differentiable path:
    the same network, one batch at a time; a `ReadoutModule` reads its states.

    The network's weights stay frozen, and may lie packed for fast inference, until a caller moves
    the module, lists its parameters or switches it to training: then they become plain and
    trainable.
    """

    save_in_root = True
    # What its parent has and a recipe says otherwise, or not at all.
    backend = "torch"
    transformer_task = "feature-extraction"
    module_output_name = "token_embeddings"
    modality_config: ClassVar[dict[str, Any]] = {
        "text": {"method": "forward", "method_output_name": "last_hidden_state"}
    }
    processing_kwargs: ClassVar[dict[str, Any]] = {}
    can_flatten_inputs = False
    unpad_inputs = False
    query_expansion = None

    def __init__(self, embedder: Embedder, *, reads: bool = True) -> None:
        """Take an Embedder.

        Args:
            embedder: whose network runs.
            reads: give vectors too, not states alone; no ReadoutModule is needed then.
        """
        nn.Module.__init__(self)  # its parent would load a network
        self._embedder = embedder
        self._said = _settings(embedder.tokenizer)
        self.model = embedder.backbone.network
        self.parts = embedder.readout.parts.modules()
        self.reads = reads
        self.listening = False
        """Whether moving, listing or training counts as a sign of training; not while
        sentence-transformers builds the model around this module."""
        self._trainable = False
        self._prompt_length_mapping: dict[Any, int | None] = {}  # kept by `_get_prompt_length`

    # -- facts that sentence-transformers asks for ----------------------------------------------

    @property
    def embedder(self) -> Embedder:
        """The Embedder, by a recipe that follows what was set on its tokenizer."""
        said = _settings(self._embedder.tokenizer)
        if said != self._said:
            changes = {k: value for k, value in said.items() if value != self._said[k]}
            recipe = self._embedder.recipe.override(changes)
            self._embedder, self._said = self._embedder.with_recipe(recipe), said
        return self._embedder

    @embedder.setter
    def embedder(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; its model_max_length and truncation_side may be set."""
        return self._embedder.tokenizer

    processor = tokenizer

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change fields of the recipe."""
        self.embedder = self.embedder.with_recipe(self.embedder.recipe.override(dict(changes)))

    @property
    def max_seq_length(self) -> int | None:
        """The number of tokens that a rendered text may have; None: no limit."""
        return self.embedder.max_length

    @max_seq_length.setter
    def max_seq_length(self, tokens: int | None) -> None:
        self.change({"prompt.max_length": tokens})

    @property
    def query_length(self) -> int | None:
        """The number of tokens of a rendered query, where queries have a limit of their own."""
        return self._length("query")

    @query_length.setter
    def query_length(self, tokens: int) -> None:
        self._set_length("query", tokens)

    @property
    def document_length(self) -> int | None:
        """The number of tokens of a rendered document, where these have a limit of their own."""
        return self._length("document")

    @document_length.setter
    def document_length(self, tokens: int) -> None:
        self._set_length("document", tokens)

    def _length(self, role: str) -> int | None:
        lengths = self.embedder.recipe.prompt.max_length
        return lengths.get(role) if isinstance(lengths, dict) else None

    def _set_length(self, role: str, tokens: int) -> None:
        lengths = self.embedder.recipe.prompt.max_length
        if not isinstance(lengths, dict):
            every = self.embedder.max_length if lengths is None else lengths
            lengths = (
                {} if every is None else dict.fromkeys(("default", "query", "document"), every)
            )
        self.change({"prompt.max_length": {**lengths, role: tokens}})

    def get_embedding_dimension(self) -> int:
        """Return the width of a vector."""
        return self.embedder.dim

    def get_config_dict(self) -> dict[str, Any]:
        """Return what is shown of it."""
        return {"recipe": self.embedder.recipe.name, "max_seq_length": self.max_seq_length}

    # -- texts to features ----------------------------------------------------------------------

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: Mapping[str, Any] | None = None,
        *,
        max_length: int | None = None,
        task: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the token ids of texts and the mask of real tokens.

        Where the readout asks which segment a token belongs to, `segments` says it. The length of a
        prompt that stands before the texts is `prompt_length`.

        Args:
            inputs: strings, or mappings with `text`.
            prompt: what stands before each text; None: nothing, or the recipe's own template where
                that is more than a prefix.
            processing_kwargs: may say `max_length` for text; the recipe says all else.
            max_length: the number of tokens of a rendered text.
            task: has no effect; a model has one network for all tasks.
            **_: arguments of modules that were added.

        Raises:
            InputError: inputs that are no texts, or `processing_kwargs` that change more.
            UnsupportedError: a recipe that averages several prompts or fills queries up.
        """
        if not len(inputs):
            return {}
        limit = self.max_length_of(processing_kwargs)
        voice = Voice.of(self.embedder, prompt)
        texts = check_texts(voice.led(inputs)).texts
        request = Request(voice.role, None, max_length if limit is None else limit)
        batch = self._one_batch(voice.embedder.renderer.render(texts, request))
        features = features_of(
            batch,
            segments=self._reads_segments(),
            token_types="token_type_ids" in self.tokenizer.model_input_names,
        )
        if prompt and prefixes_of(self.embedder.recipe) is not None:
            features["prompt_length"] = self._get_prompt_length(str(prompt))
        return features

    def _one_batch(self, batches: list[RenderedBatch]) -> RenderedBatch:
        """Return the one batch that can be features."""
        name = self.embedder.recipe.name
        if len(batches) > 1 or self.embedder.recipe.transform is not None:
            raise UnsupportedError(
                f"recipe {name!r} averages several prompts or rewritten texts, which are not one "
                "row of tokens; call encode for sentence embeddings"
            )
        (batch,) = batches
        if any(batch.unseen):
            raise UnsupportedError(
                f"recipe {name!r} fills queries up with mask tokens that no token looks at; call "
                "encode for sentence embeddings"
            )
        return batch

    def _reads_segments(self) -> bool:
        readout = self.embedder.readout
        return readout.reads_segments or readout.parts.latent is not None

    @staticmethod
    def max_length_of(processing_kwargs: Mapping[str, Any] | None) -> int | None:
        """Return the limit that options for a processor ask for; None: the recipe's.

        Raises:
            InputError: they ask for more than that.
        """
        options = dict((processing_kwargs or {}).get("text") or {})
        length: int | None = options.pop("max_length", None)
        other = {k: v for k, v in options.items() if v not in _TRUNCATION.get(k, ())}
        if other or {*(processing_kwargs or {})} - {"text"}:
            raise InputError(
                f"processing_kwargs {processing_kwargs!r} cannot be honoured: the recipe says how "
                "texts are processed; give max_length for text alone, or another recipe"
            )
        return length

    def tokenize(self, texts: Sequence[Any], **options: Any) -> dict[str, Any]:
        """Return what `preprocess` returns (the older name)."""
        return self.preprocess(texts, **options)

    # -- features to states ---------------------------------------------------------------------

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `token_embeddings` (B, L, D) to the features.

        Where the network's configuration asks for hidden states, `all_layer_embeddings` has those
        of every layer, as sentence-transformers gives them.
        """
        if self.training or torch.is_grad_enabled():
            self.make_trainable()
        layers = self.embedder.readout.layers
        features["token_embeddings"] = self._states(features, layers)
        if getattr(self.config, "output_hidden_states", False):
            count = int(self.embedder.backbone.text_config.num_hidden_layers)
            features["all_layer_embeddings"] = tuple(
                self._states(features, (layer,)) for layer in range(count + 1)
            )
        if self.reads:
            features["sentence_embedding"] = vectors_of(self.embedder, self.run(), features)
        return features

    def _states(self, features: Mapping[str, Any], layers: tuple[int, ...]) -> Tensor:
        """Return the mean of some layers' states, h_BLD."""
        seen_BL, run = seen_of(features), self.run()
        rows = batch_of(features).ids
        items: list[int] = []
        states: list[Tensor] = []
        for pack in plan(rows, self.embedder.executor.budget(), share=False):
            mine = pack.items.tolist()
            of_pack = [rows[item] for item in mine]
            h_TD = run(of_pack, layers=layers)
            items += mine
            states += torch.split(h_TD, [len(row) for row in of_pack])
        h_TD = torch.cat(
            [states[index] for index in sorted(range(len(items)), key=items.__getitem__)]
        )
        h_BLD = h_TD.new_zeros(*seen_BL.shape, h_TD.shape[-1])
        return h_BLD.masked_scatter(seen_BL.to(h_TD.device)[..., None], h_TD)

    def run(self) -> Run:
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

    # -- training and moving --------------------------------------------------------------------

    def make_trainable(self) -> None:
        """Give the network plain weights that learn; done once, at the first sign of training."""
        if self._trainable or not self.listening or self.embedder.backbone.quantised:
            return
        self._trainable = True
        self.embedder.ranges = Ranges()  # those of the vectors before training
        self.embedder.executor.plain()
        for part in (self.model, self.parts):
            part.requires_grad_(True)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters, plain and trainable."""
        self.make_trainable()
        yield from super().named_parameters(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules; their weights must be plain, since parameters are found by them."""
        self.make_trainable()
        yield from super().named_modules(*args, **kwargs)

    def train(self, mode: bool = True) -> EmbedderModule:
        """Switch dropout on or off."""
        if mode:
            self.make_trainable()
        super().train(mode)
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> EmbedderModule:
        """Move or cast the weights; the embedder's views of the network are made anew."""
        if self.embedder.backbone.quantised:
            raise UnsupportedError(
                f"{self.embedder.name!r} runs in {self.embedder.backbone.quantised} and cannot be "
                "moved or cast; load it with the device and dtype that you want"
            )
        self.make_trainable()
        super()._apply(*args, **kwargs)
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
        refuse_options(**{name: options.get(name) for name in _REFUSED})
        return cls(embedlm.load(Path(model_name_or_path) / subfolder))


def _settings(tokenizer: Any) -> dict[str, Any]:
    """Return the fields of a recipe that sentence-transformers lets its tokenizer say."""
    return {
        "prompt.max_length": tokenizer.model_max_length,
        "prompt.truncation_side": tokenizer.truncation_side,
    }
