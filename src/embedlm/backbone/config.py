"""A model's config, and the errors that say why a model cannot be opened."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig, PretrainedConfig

from embedlm.backbone.config_fields import check_fields
from embedlm.backbone.quiet import quiet
from embedlm.backbone.stored import is_stored_by_row
from embedlm.errors import EmbedLMError, ModelError, UnsupportedError, closest
from embedlm.jobs.json_files import read_object

__all__ = [
    "WRAPPED",
    "check_reachable",
    "is_local",
    "load_config",
    "raw_config",
    "stored_dtype",
    "unloadable",
]

WRAPPED = {"nvembed": ("mistral", "embedding_model.")}
"""Published wrappers: the type of the network inside, and what its weights' names begin with."""


_OLD_IDS = re.compile(
    r"ctrl|distilgpt2|(albert|bert|camembert|distilbert|distilroberta|gpt2|openai-gpt|roberta|t5"
    r"|transfo-xl|xlm|xlnet)(-[a-z0-9-]+)?"
)
"""The hub's ids from before an id had an owner."""


def is_local(source: str) -> bool:
    """Return whether a model's name can only be a folder's: it is there, or has no hub id's form.

    A name that is no folder and has no owner is not asked for on the hub, except for the few ids
    that are older than owners.
    """
    if Path(source).exists() or source.startswith((".", "/", "~")):
        return True
    return source.count("/") != 1 and not _OLD_IDS.fullmatch(source)


def stored_dtype(source: str) -> str | None:
    """Return the numbers that a model's config names, where they are of 16 bits; None otherwise."""
    name = str(load_config(source).dtype).removeprefix("torch.")
    return name if name in ("bfloat16", "float16") else None


def load_config(source: str) -> Any:
    """Return the transformers config of a folder or hub id.

    Raises:
        ModelError: no such folder, no model in it, or the hub cannot be reached.
    """
    path = Path(source)
    if is_local(source):
        if not path.is_dir():
            raise ModelError(_no_folder(source))
        file = path / "config.json"
        if not file.is_file():
            raise ModelError(
                f"the folder {source!r} is no model: it has no config.json. A model's folder holds "
                "config.json, *.safetensors and tokenizer.json"
            )
        check_fields(file, read_object(file))
    else:
        check_reachable(source)
    try:
        with quiet():
            outer = raw_config(source)
            if outer.get("model_type") in WRAPPED:
                kind, _ = WRAPPED[outer["model_type"]]
                inner = {**outer["text_config"], "model_type": kind}
                return _plain(AutoConfig.for_model(**inner))
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if is_stored_by_row(source, outer):
                del config.quantization_config  # what is loaded is expanded
            return _plain(config)
    except EmbedLMError:
        raise
    except Exception as error:  # the libraries' own errors have no common base
        raise unloadable(source, "config", error) from error


def _plain(config: Any) -> Any:
    """Return a config without what changes how states are handed over, and not what they are."""
    config.return_dict = True
    for one in {id(one): one for one in (config, config.get_text_config())}.values():
        if getattr(one, "chunk_size_feed_forward", 0):
            one.chunk_size_feed_forward = 0  # rows of any length, not multiples of it alone
    return config


def _no_folder(source: str) -> str:
    if Path(source).exists() or source.startswith((".", "/", "~")):
        return f"{source!r} is not a folder; give a model folder or a hub id"
    return (
        f"no folder {source!r} here; give the path of a model folder, or a hub id, which has the "
        "form owner/name (only old ids such as gpt2 have no owner)."
        + closest(source, ["builtin", "builtin-base"])
    ).removesuffix(".")


def check_reachable(source: str) -> None:
    """Refuse a hub model that is not in the cache while the hub does not answer.

    One request tells; the loading of a config would try again for half a minute without a word.

    Raises:
        ModelError: it is not there.
    """
    try:
        snapshot_download(source, allow_patterns=["config.json"])
    except LocalEntryNotFoundError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise ModelError(
            f"cannot load {source!r} from the Hugging Face hub: the model is not in the cache, "
            f"and the hub did not answer ({shorten(cause, 200, placeholder=' ...')}). Check the "
            "id and the network, or give the path of a local folder"
        ) from None
    except Exception:  # the hub's client and its transport have no common base
        return  # loading says what is wrong


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
    reason = shorten(reason, 300, placeholder=" ...")
    if isinstance(error, ImportError):
        return ModelError(
            f"a package that is not installed is needed to load the {what} of {source!r}: {reason}"
        )
    if is_local(source):
        return ModelError(f"the {what} in {source!r} cannot be loaded (corrupt?): {reason}")
    return ModelError(
        f"cannot load {source!r} from the Hugging Face hub: {reason.removesuffix('.')}. Check the "
        "id and the network, or give the path of a local folder"
    )
