"""A model's config, and the errors that say why a model cannot be opened."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import AutoConfig, PretrainedConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from embedlm.backbone.config_fields import check_fields
from embedlm.backbone.quiet import quiet
from embedlm.backbone.stored import is_stored_by_row
from embedlm.errors import EmbedLMError, ModelError, UnsupportedError, closest
from embedlm.jobs.json_files import read_object
from embedlm.schema.arguments import short

__all__ = [
    "STANFORD_CLASS",
    "TABLE_TYPE",
    "TOKEN_PROJECTIONS",
    "WRAPPED",
    "check_reachable",
    "is_local",
    "load_config",
    "network_classes",
    "raw_config",
    "stored_by",
    "stored_dtype",
    "token_projection",
    "unloadable",
]


class Wrapper(NamedTuple):
    """A published class around a network that transformers opens by itself."""

    field: str
    """Of config.json, with the config of the network inside."""
    kind: str | None
    """The type of that network; None: as its config says."""
    prefix: str
    """What the names of its weights begin with: a regular expression."""
    beside: str
    """What the names of the wrapper's own weights begin with, which are read apart."""


# transformers 4 named a ColQwen2's network as the body of a language model.
_VLM = r"vlm\.(model\.(?=visual\.|language_model\.))?"
_RETRIEVER = Wrapper("vlm_config", None, _VLM, "embedding_proj_layer.")
WRAPPED = {
    "nvembed": Wrapper("text_config", "mistral", r"embedding_model\.", "latent_attention_model."),
    "colqwen2": _RETRIEVER,
    "colpali": _RETRIEVER,
}
"""Wrappers by the type that their config.json names."""
TABLE_TYPE = "model2vec"
"""The type of a folder with a table of embeddings and no network."""
STANFORD_CLASS = "HF_ColBERT"
"""The ColBERT library's class: an encoder, and a projection of its states beside it."""
TOKEN_PROJECTIONS = {
    STANFORD_CLASS: "linear.",
    "ColQwen2ForRetrieval": _RETRIEVER.beside,
    "ColPaliForRetrieval": _RETRIEVER.beside,
}
"""What the names of the layer that makes vectors of token states begin with, by the class."""


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


def stored_by(fields: Mapping[str, Any]) -> str | None:
    """Return the method by which the weights of a config.json are stored in fewer bits.

    Raises:
        ModelError: the method is not one of transformers', which would pass over it.
    """
    settings = fields.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method.startswith("embedlm"):
        return None
    known = {re.sub("_[48]bit$", "", str(name)) for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method not in known:
        raise ModelError(
            f"config.json: quantization_config has the quant_method {method!r}, which transformers "
            f"does not know; known: {', '.join(sorted(known))}. Take a checkpoint of plain weights"
        )
    return method


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
            if outer.get("model_type") == TABLE_TYPE:
                raise UnsupportedError(
                    f"{source!r} holds a table of embeddings, and a network is needed here; take "
                    "another model"
                )
            stored_by(outer)
            wrapper = WRAPPED.get(outer.get("model_type", ""))
            if wrapper is not None:
                return _plain(AutoConfig.for_model(**_inside(outer, wrapper)))
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if is_stored_by_row(source, outer):
                del config.quantization_config  # what is loaded is expanded
            return _plain(config)
    except EmbedLMError:
        raise
    except Exception as error:  # the libraries' own errors have no common base
        raise unloadable(source, "config", error) from error


def _inside(outer: Mapping[str, Any], wrapper: Wrapper) -> dict[str, Any]:
    """Return the fields of the config of the network inside a wrapper.

    Raises:
        ModelError: there are none.
    """
    inner = outer.get(wrapper.field)
    kind = wrapper.kind or (inner.get("model_type") if isinstance(inner, dict) else None)
    if not isinstance(inner, dict) or not isinstance(kind, str):
        raise ModelError(
            f"config.json: {wrapper.field} is {short(inner)}; allowed is the config of the network "
            "inside, which names its model_type"
        )
    dtypes = {name: outer.get(name) for name in ("dtype", "torch_dtype")}  # of versions 5 and 4
    return {**dtypes, **inner, "model_type": kind}


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
        "form owner/name (only old ids such as gpt2 have no owner; that of the short names that "
        "sentence-transformers takes is sentence-transformers)."
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


def network_classes(fields: Mapping[str, Any]) -> list[str]:
    """Return the classes that the content of a config.json names; none where it is damaged."""
    named = fields.get("architectures")
    return [str(one) for one in named] if isinstance(named, list) else []


def token_projection(fields: Mapping[str, Any]) -> str | None:
    """Return what the names of a checkpoint's layer for token vectors begin with; None: no layer.

    Args:
        fields: of its config.json.
    """
    found = (TOKEN_PROJECTIONS.get(name) for name in network_classes(fields))
    return next((prefix for prefix in found if prefix is not None), None)


def raw_config(source: str) -> dict[str, Any]:
    """Return a folder's or hub id's config.json as it stands."""
    fields, _ = PretrainedConfig.get_config_dict(source)
    return dict(fields)


_FIELD_ERROR = re.compile(
    r"(?:Class v|V)alidation error for (?:validator|field) '[^']*': \w+: (?P<reason>.*?)"
    r"(?: Errors: .*)?"
)
"""How transformers begins and ends what it says of a field of a config."""


def _no_body(source: str, reason: str) -> UnsupportedError | None:
    """Return the error of a network that no Auto class opens; None: that is not what is wrong."""
    if "Unrecognized configuration class" not in reason:
        return None
    fields = raw_config(source)
    names = ", ".join(network_classes(fields) or ["network"])
    kind = fields.get("model_type")
    return UnsupportedError(
        f"{source!r} is a {names} ({kind!r}), and transformers' AutoModel has no body of that "
        "kind that EmbedLM could read a text with; take another checkpoint"
    )


def _field_told(source: str, error: BaseException, reason: str) -> ModelError | None:
    """Return what is wrong with a field of config.json; None: the error is of something else."""
    where = f"the config.json of {source!r} cannot be used: "
    advice = "correct it, or take the config.json that was published with the weights"
    validation = _FIELD_ERROR.fullmatch(reason)
    if validation is not None:
        said = validation["reason"].replace("<class 'NoneType'>", "null")
        said = re.sub(r"<class '(\w+)'>", r"\1", said).rstrip(".")
        return ModelError(f"{where}{shorten(said, 300, placeholder=' ...')}; {advice}")
    name = error.args[0] if isinstance(error, KeyError) and error.args else None
    field = _field_with(raw_config(source), name) if isinstance(name, str) else None
    if field is None:
        return None
    return ModelError(
        f"{where}{field} is {name!r}, which transformers does not know there; {advice}"
    )


def _field_with(fields: Mapping[str, Any], value: Any) -> str | None:
    """Return the path of the field of a config that has a value."""
    for name, own in fields.items():
        if own == value:
            return name
        inner = _field_with(own, value) if isinstance(own, dict) else None
        if inner is not None:
            return f"{name}.{inner}"
    return None


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
    told = _no_body(source, reason) or _field_told(source, error, reason)
    if told is not None:
        return told
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
