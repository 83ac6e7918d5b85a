"""A model's config, and the errors that say why a model cannot be opened."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from embedlm.backbone.config_fields import check_fields
from embedlm.backbone.quiet import quiet
from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import read_object

__all__ = ["WRAPPED", "load_config", "raw_config", "unloadable"]

WRAPPED = {"nvembed": ("mistral", "embedding_model.")}
"""Published wrappers: the type of the network inside, and what its weights' names begin with."""


def _is_local(source: str) -> bool:
    return Path(source).exists() or source.startswith((".", "/", "~"))


def load_config(source: str) -> Any:
    """Return the transformers config of a folder or hub id.

    Raises:
        ModelError: no such folder, no model in it, or the hub cannot be reached.
    """
    path = Path(source)
    if _is_local(source):
        if not path.is_dir():
            raise ModelError(f"{source!r} is not a folder; give a model folder or a hub id")
        file = path / "config.json"
        if not file.is_file():
            raise ModelError(
                f"the folder {source!r} is no model: it has no config.json. A model's folder holds "
                "config.json, *.safetensors and tokenizer.json"
            )
        check_fields(file, read_object(file))
    try:
        with quiet():
            outer = raw_config(source)
            if outer.get("model_type") in WRAPPED:
                kind, _ = WRAPPED[outer["model_type"]]
                inner = {**outer["text_config"], "model_type": kind}
                return AutoConfig.for_model(**inner)
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the libraries' own errors have no common base
        raise unloadable(source, "config", error) from error


def raw_config(source: str) -> dict[str, Any]:
    """Return a folder's or hub id's config.json as it stands."""
    fields, _ = PretrainedConfig.get_config_dict(source)
    return dict(fields)


def unloadable(source: str, what: str, error: BaseException) -> ModelError:
    """Return the error that says why a library could not load a part of a model.

    Args:
        source: folder or hub id.
        what: the part: config, tokenizer or weights.
        error: of the library.
    """
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason or "custom code" in reason:
        return UnsupportedError(
            f"{source!r} needs code from its repository to load its {what}. EmbedLM never runs "
            "remote code; it has its own loader for the systems listed by `embedlm recipes`"
        )
    if isinstance(error, pickle.UnpicklingError):
        return ModelError(
            f"the {what} in {source!r} are a pickle that holds more than tensors; nothing of it "
            "was run. Get the model as safetensors, or convert it where you trust it"
        )
    if _is_local(source):
        return ModelError(f"the {what} in {source!r} cannot be loaded (corrupt?): {reason[:300]}")
    return ModelError(
        f"cannot load {source!r} from the Hugging Face hub: {reason[:200]}. Check the id and the "
        "network, or give the path of a local folder"
    )
