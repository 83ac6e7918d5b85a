"""An Embedder as an encoder of mteb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedlm.encode.identity import revision
from embedlm.errors import require
from embedlm.interop.models import dense_options, embedder_of

if TYPE_CHECKING:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction

    from embedlm.embedder import Embedder
else:
    ModelMeta = require("mteb.models", "mteb").ModelMeta
    AbsEncoder = require("mteb.models.abs_encoder", "mteb").AbsEncoder
    ScoringFunction = require("mteb.models.model_meta", "mteb").ScoringFunction

__all__ = ["EmbedLMEncoder", "model_metadata"]

_SCORES = ("cosine", "dot")


class EmbedLMEncoder(AbsEncoder):
    """Encodes mteb's tasks: queries and documents by the recipe's templates for them.

    Where the template has an `{instruction}`, it is the task's; elsewhere the recipe speaks alone.
    """

    def __init__(
        self,
        model: Any = None,
        *,
        recipe: Any = None,
        instructions: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        """Take or load a model.

        Args:
            model: an Embedder, or what `embedlm.load` takes; None: the built-in model.
            recipe: as in `embedlm.load`; with an Embedder, the recipe that it changes to.
            instructions: in place of mteb's own, by the name of a task, by its type, or by "query"
                and "document"; the first of these that there is.
            **options: those of `encode`, for every call: dim, normalize, max_length, ...
        """
        self.options = dense_options(options)
        self.model = embedder_of(model, recipe)
        self.prompts_dict = dict(instructions) if instructions else None
        self.mteb_model_meta = _metadata(self.model, self.prompts_dict, options)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        precision: str | None = None,
        show_progress_bar: bool | None = None,
        **_: Any,
    ) -> npt.NDArray[Any]:
        """Return the dense vectors of a task's texts, (n, dim).

        Args:
            inputs: mteb's batches, each with `text`.
            task_metadata: says the instruction.
            hf_split: has no effect.
            hf_subset: has no effect.
            prompt_type: query, document, or None: the recipe's default template.
            precision: as in `encode`.
            show_progress_bar: whether a bar is shown.
            **_: `batch_size`, which has no effect: the engine plans the whole list.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        given = {"precision": precision, "show_progress": show_progress_bar}
        vectors: npt.NDArray[Any] = self.vectors(
            texts, task_metadata, prompt_type, heads="dense", **given
        )
        return vectors

    def vectors(
        self, texts: Sequence[str], task_metadata: Any, prompt_type: Any, **options: Any
    ) -> Any:
        """Return what `Embedder.encode` gives texts of a task.

        Args:
            texts: of the task.
            task_metadata: says the instruction.
            prompt_type: query, document, or None: the recipe's default template.
            **options: of `encode`; those of the encoder come before them.
        """
        role = None if prompt_type is None else prompt_type.value
        if self.model.takes_instruction(role):
            options["instruction"] = self.get_instruction(task_metadata, prompt_type) or None
        return self.model.encode(list(texts), role, **{**options, **self.options})

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return all scores by the recipe's similarity."""
        return self.model.similarity(_rows(embeddings1), _rows(embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the scores of pairs by the recipe's similarity."""
        return self.model.similarity_pairwise(_rows(embeddings1), _rows(embeddings2))


def _metadata(
    model: Embedder, instructions: Mapping[str, str] | None, options: Mapping[str, Any]
) -> ModelMeta:
    """Return what mteb's results say of a model."""
    own = revision(model, dict(instructions or {}), dict(options))
    similarity = model.recipe.similarity
    score = ScoringFunction(similarity) if similarity in _SCORES else None
    return model_metadata(
        model.name,
        own,
        list(model.backbone.network.parameters()),
        max_tokens=model.max_length,
        embed_dim=options.get("dim") or model.dim,
        similarity_fn_name=score,
        use_instructions=any(map(model.takes_instruction, (None, "query"))),
    )


def model_metadata(name: str, revision: str, parameters: Sequence[Any], **more: Any) -> ModelMeta:
    """Return what mteb's results say of a model.

    Args:
        name: a folder or hub id.
        revision: a hash of whatever scores depend on; mteb keeps scores under it.
        parameters: of the network.
        **more: further fields.
    """
    size = sum(each.numel() * each.element_size() for each in parameters)
    local = "/" not in name or Path(name).exists()
    return ModelMeta.create_empty(
        {
            "name": f"embedlm/{Path(name).name}" if local else name,
            "revision": revision,
            "n_parameters": sum(each.numel() for each in parameters),
            "memory_usage_mb": size / 2**20,
            "framework": ["PyTorch"],
            **more,
        }
    )


def _rows(vectors: Any) -> npt.NDArray[Any]:
    """Return vectors of numpy or torch as an array."""
    return np.asarray(vectors.cpu() if hasattr(vectors, "cpu") else vectors)
