"""A whole model to a repository of the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from embedlm.errors import InputError, ModelError
from embedlm.persistence.card import Card
from embedlm.persistence.write import save
from embedlm.schema.arguments import check_arguments

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["push"]


def push(
    embedder: Embedder,
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    save_dtype: str | None = None,
    **card: Any,
) -> str:
    """Save a model to a repository of the hub; see `Embedder.push_to_hub`."""
    check_arguments("save_pretrained", save_dtype=save_dtype)
    about = Card.of(card)
    api = HfApi(token=token)
    try:
        validate_repo_id(repo)  # the folder below is called by it
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no repository id; write owner/name: {error}") from error
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / (repo.rsplit("/", 1)[-1] or "model")
        save(embedder, folder, about, save_dtype)
        try:
            made = api.create_repo(repo, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(made.repo_id, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"Save {embedder.recipe.name} with EmbedLM",
            )
        except Exception as error:  # the hub's client and its transport have no common base
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"cannot save to {repo!r} on the Hugging Face hub: {reason}. Check the network, "
                "the id, and that the token may write (`hf auth login`, or token=...)"
            ) from error
    return str(made)
