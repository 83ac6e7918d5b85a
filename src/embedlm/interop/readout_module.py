"""The second module of a bridged SentenceTransformer: states of tokens to vectors.

Shapes: B texts of a batch, L tokens of the longest, T tokens of all, D width of a state or vector.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embedlm.encode.run import Run, template_states
from embedlm.errors import UnsupportedError, require
from embedlm.interop.features import batch_of, seen_of
from embedlm.persistence.modules import AFTER_PROMPT, POOLINGS, leaves_prompt_out
from embedlm.readout import PackStates
from embedlm.readout.heads import requested_heads

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.interop.network_module import EmbedderModule

# Its attributes are properties here: its types do not hold.
Pooling: Any = require("sentence_transformers.sentence_transformer.modules", "eval").Pooling

__all__ = ["ReadoutModule", "vectors_of"]


class ReadoutModule(Pooling):
    """An Embedder's readout in the place of sentence-transformers' pooling.

    What is set on it (`pooling_mode`, `include_prompt`) changes the recipe, for encoding as for
    training.
    """

    def __init__(self, network: EmbedderModule) -> None:
        nn.Module.__init__(self)  # it has none of the settings that its parent keeps
        self._network = (network,)  # as no module of this one, whose parameters it would list twice

    @property
    def embedder(self) -> Embedder:
        """The Embedder whose readout this is."""
        return self._network[0].embedder

    @property
    def pooling_mode(self) -> str | tuple[str, ...]:
        """The pooling, by its name in sentence-transformers where it has one; or several."""
        kind = self.embedder.recipe.pooling.kind
        names = [kind] if isinstance(kind, str) else kind
        modes = tuple(POOLINGS[name][0] if name in POOLINGS else name for name in names)
        return modes[0] if len(modes) == 1 else modes

    @pooling_mode.setter
    def pooling_mode(self, mode: str | tuple[str, ...]) -> None:
        kinds = {names[0]: kind for kind, names in POOLINGS.items()}
        modes = [mode] if isinstance(mode, str) else list(mode)
        if not modes or any(name not in kinds for name in modes):
            raise UnsupportedError(
                f"pooling_mode is {mode!r}; an Embedder takes {', '.join(kinds)}, or several"
            )
        chosen = [kinds[name] for name in modes]
        self._network[0].change({"pooling.kind": chosen[0] if len(chosen) == 1 else chosen})

    @property
    def include_prompt(self) -> bool:
        """Whether the tokens of a prompt are pooled."""
        return self.embedder.recipe.pooling.over == "all"

    @include_prompt.setter
    def include_prompt(self, include: bool) -> None:
        if include == self.include_prompt:
            return
        if include and not leaves_prompt_out(self.embedder.recipe):
            raise UnsupportedError(
                f"recipe {self.embedder.recipe.name!r} pools "
                f"{self.embedder.recipe.pooling.over!r}; set pooling.over to all in the recipe"
            )
        over = {"pooling.over": list(AFTER_PROMPT), "pooling.boundary": "count_prompt"}
        whole = {"pooling.over": "all", "pooling.boundary": "offsets"}
        self._network[0].change(whole if include else over)

    @property
    def embedding_dimension(self) -> int:
        """Width of a token's state."""
        return self.embedder.backbone.dim

    def get_embedding_dimension(self) -> int:
        """Return the width of a vector."""
        return self.embedder.dim

    def get_config_dict(self) -> dict[str, Any]:
        """Return what is shown of it."""
        return {name: getattr(self, name) for name in self.config_keys}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (B, D), read from `token_embeddings` (B, L, D)."""
        run = self._network[0].run()
        features["sentence_embedding"] = vectors_of(self.embedder, run, features)
        return features

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Save nothing: the readout is in the recipe, which the first module saves."""


def vectors_of(embedder: Embedder, run: Run, features: dict[str, Any]) -> Tensor:
    """Return the dense vectors of features with states, finished as by the engine, vectors_BD."""
    heads = requested_heads("dense", embedder.recipe, several=False)
    readout = embedder.readout.with_heads(heads)
    batch = batch_of(features)
    h_TD = features["token_embeddings"][seen_of(features)]
    states = PackStates(h_TD, batch.ids, batch.segments)
    if readout.pooling.denoise:
        states.template = template_states(run, readout, batch, range(len(batch.ids)))
    return _finished(embedder, readout.gradient_rows(states, max(map(len, batch.ids))))


def _finished(embedder: Embedder, vectors_BD: Tensor) -> Tensor:
    """Return vectors as `finish_vectors` does, with a gradient."""
    statistics = embedder.readout.statistics
    if statistics is not None and statistics.components_KD is not None:
        common_KD = torch.from_numpy(statistics.components_KD).to(vectors_BD)
        vectors_BD = vectors_BD - vectors_BD @ common_KD.T @ common_KD
    recipe = embedder.recipe
    if recipe.normalize and not (recipe.dim and recipe.renormalize):
        vectors_BD = nn.functional.normalize(vectors_BD, dim=1)
    vectors_BD = vectors_BD[:, : recipe.dim]
    if recipe.normalize and recipe.dim and recipe.renormalize:
        vectors_BD = nn.functional.normalize(vectors_BD, dim=1)
    return vectors_BD
