"""The methods of an Embedder that write it: to a folder, to a repository of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from embedlm.schema.arguments import check_arguments, usable_path

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Saving"]


class Saving:
    """What an Embedder can be written to."""

    def save_pretrained(
        self, folder: str | Path, *, save_dtype: str | None = None, **card: Any
    ) -> None:
        """Save a model for `load`, and for sentence-transformers where it can express the method.

        Args:
            folder: new, empty, or that of a model, which is replaced.
            save_dtype: the network's numbers in the folder: float32, bfloat16, float16, or int8
                (matrices by row, which only EmbedLM opens); None: those it runs in.
            **card: license (an identifier of the hub), base_model, scores (numbers by task);
                licence and base model are else those of the card in the model's folder.

        Raises:
            InputError: a folder, dtype or fact that cannot be used.
            ModelError: weights that the dtype cannot hold.
        """
        from embedlm.persistence.card import Card
        from embedlm.persistence.write import save

        check_arguments("save_pretrained", folder=folder, save_dtype=save_dtype)
        about = Card.of(card)
        save(cast("Embedder", self), usable_path(folder), about, save_dtype)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Save the model to a repository of the Hugging Face hub and return its address.

        Args:
            repo: "owner/name"; created if it is not there.
            **options: private, token, revision and message; and those of `save_pretrained`.

        Raises:
            ModelError: the hub cannot be reached, or refuses.
        """
        from embedlm.persistence.push import push

        return push(cast("Embedder", self), repo, **options)
