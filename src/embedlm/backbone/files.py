"""From folder or hub id to config, tokenizer and network, with errors that say what is wrong."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import optional_json, read_json
from embedlm.prompt.special import keep_declared

__all__ = [
    "bfloat16_is_fast",
    "choose_device",
    "choose_dtype",
    "load_classifier",
    "load_config",
    "load_network",
    "load_tokenizer",
    "raw_config",
    "read_tensors",
]

_WRAPPED = {"nvembed": ("mistral", "embedding_model.")}
"""Published wrappers: the type of the network inside, and what its weights' names begin with."""
_HALF = (torch.float16, torch.bfloat16)
_IGNORED_MISSING = ("pooler.", ".position_ids", "lm_head.bias", "cls.predictions.decoder.bias")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' loading reports and bars off the terminal; errors are raised here."""
    level, hub_level = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or the best there is."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).cpu()  # "meta" holds no values
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {str(device)!r} cannot be used: {error}") from error
    return chosen


def bfloat16_is_fast(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(
            bool(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)())
            for name in ("avx512_bf16", "amx_tile", "arm_bf16")
        )
    return True


def choose_dtype(dtype: str | torch.dtype, config: Any, device: torch.device) -> torch.dtype:
    """Return the dtype to run in.

    `auto` keeps a float32 checkpoint in float32, so that its vectors equal the reference's, and
    runs a half-precision one in bfloat16 where the hardware has it fast, else in float32.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        stored = getattr(config, "dtype", None)
        if isinstance(stored, str):
            stored = getattr(torch, stored, None)
        if stored not in _HALF:
            return torch.float32
        if device.type == "cuda" and stored == torch.float16:
            return torch.float16
        return torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in allowed:
        names = ", ".join(["auto", *allowed, "int8", "fp8"])
        raise ModelError(f"dtype {dtype!r} is not known; allowed: {names}")
    return allowed[dtype]


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
                f"the folder {source!r} is no model: it has no config.json. Expected are "
                "config.json, *.safetensors and tokenizer.json"
            )
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict):
            raise ModelError(f"{file} holds a JSON {type(found).__name__}, not an object")
    try:
        with quiet():
            given = raw_config(source)
            if given.get("model_type") in _WRAPPED:
                kind, _ = _WRAPPED[given["model_type"]]
                inner = {**given["text_config"], "model_type": kind}
                return AutoConfig.for_model(**inner)
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the libraries' own errors have no common base
        raise _explained(source, "config", error) from error


def raw_config(source: str) -> dict[str, Any]:
    """Return a folder's or hub id's config.json as it stands."""
    found, _ = PretrainedConfig.get_config_dict(source)
    return dict(found)


def _key_mapping(source: str) -> dict[str, str] | None:
    """Return how a checkpoint's names become those of the network inside it."""
    wrapped = _WRAPPED.get(raw_config(source).get("model_type", ""))
    return None if wrapped is None else {f"^{re.escape(wrapped[1])}": ""}


def read_tensors(source: str, prefix: str, file: str = "model.safetensors") -> dict[str, Tensor]:
    """Return the tensors of a folder or hub id whose names begin so, without that beginning.

    Raises:
        ModelError: a file that cannot be read.
    """
    silent = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(source, f"{file}.index.json", **silent)
    one = cached_file(source, file, **silent)
    names = [file] if one is not None else []
    if index is not None:
        places: dict[str, str] = read_json(Path(index))["weight_map"]
        names = sorted({place for key, place in places.items() if key.startswith(prefix)})
    found: dict[str, Tensor] = {}
    try:
        for name in names:
            with safe_open(str(cached_file(source, name)), "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if key.startswith(prefix):
                        found[key.removeprefix(prefix)] = tensors.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise _explained(source, "weights", error) from error
    return found


def load_tokenizer(source: str) -> Any:
    """Return the fast tokenizer of a folder or hub id, with the EOS that its config declares."""
    try:
        # Given the config, the library does not ask a wrapper's own for remote code.
        tokenizer = AutoTokenizer.from_pretrained(
            source, config=load_config(source), trust_remote_code=False, use_fast=True
        )
        file = cached_file(
            source, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise _explained(source, "tokenizer", error) from error
    if file is not None and getattr(tokenizer, "is_fast", False):
        keep_declared(tokenizer, optional_json(Path(file)))
    return tokenizer


def _explained(source: str, what: str, error: BaseException) -> ModelError:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason or "custom code" in reason:
        return UnsupportedError(
            f"{source!r} needs code from its repository to load its {what}. EmbedLM never runs "
            "remote code; it has its own loader for the systems listed by `embedlm recipes`"
        )
    if _is_local(source):
        return ModelError(f"the {what} in {source!r} cannot be loaded (corrupt?): {reason[:300]}")
    return ModelError(
        f"cannot load {source!r} from the Hugging Face hub: {reason[:200]}. Check the id and the "
        "network, or give the path of a local folder"
    )


def _head_class(config: Any) -> Any:
    names = config.architectures or []
    kind = config.model_type
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if masked and (not causal or any("Masked" in name for name in names)):
        return AutoModelForMaskedLM
    if masked and kind in ("bert", "roberta", "xlm-roberta", "camembert", "electra"):
        return AutoModelForMaskedLM
    return AutoModelForCausalLM if causal else None


def load_network(
    source: str, config: Any, dtype: torch.dtype, *, head: bool, implementation: str
) -> tuple[nn.Module, list[str]]:
    """Return the network (with its language-model head if `head`) and its missing head weights.

    Raises:
        ModelError: weights that are missing, truncated or do not fit the config.
        UnsupportedError: a head was asked for and the architecture has none.
    """
    loader: Any = AutoModel
    if head:
        loader = _head_class(config)
        if loader is None:
            raise UnsupportedError(
                f"{config.model_type!r} models have no language-model head, which this recipe's "
                "sparse head needs; use a causal or masked language model"
            )
    elif MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type, "").endswith("EncoderModel"):
        loader = AutoModelForTextEncoding
    model, missing, mismatched = _opened(loader, source, config, dtype, implementation)
    prefix = f"{model.base_model_prefix}." if head else ""
    body = [key for key in missing if key.startswith(prefix)] + mismatched
    _refuse(source, body)
    return model.eval().requires_grad_(False), [key for key in missing if key not in body]


def load_classifier(source: str, config: Any, dtype: torch.dtype) -> nn.Module:
    """Return the sequence classification network of a folder or hub id.

    Raises:
        ModelError: weights that are missing, truncated or do not fit the config.
    """
    loader = AutoModelForSequenceClassification
    with quiet():
        model, missing, mismatched = _opened(loader, source, config, dtype, "sdpa")
    # A pooler that a classifier lacks is read by it, so that here it may not be missing.
    unread = [key for key in missing if not key.endswith("position_ids")]
    _refuse(source, unread + mismatched)
    ready: nn.Module = model.eval().requires_grad_(False)
    return ready


def _opened(
    loader: Any, source: str, config: Any, dtype: torch.dtype, implementation: str
) -> tuple[Any, list[str], list[str]]:
    """Return a network and which of its weights the files lack, or have in another shape."""
    try:
        model, info = loader.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            attn_implementation=implementation,
            output_loading_info=True,
            key_mapping=_key_mapping(source),
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if implementation == "sdpa" and "scaled_dot_product_attention" in str(error):
            return _opened(loader, source, config, dtype, "eager")
        raise _explained(source, "weights", error) from error
    if raw_config(source).get("model_type") in _WRAPPED:
        model._weight_conversions = []  # it is saved as the network that it is
    ignored = () if loader is AutoModelForSequenceClassification else _IGNORED_MISSING
    missing = [key for key in info["missing_keys"] if not any(part in key for part in ignored)]
    return model, missing, [str(key) for key in info.get("mismatched_keys", ())]


def _refuse(source: str, unfit: list[str]) -> None:
    if unfit:
        raise ModelError(
            f"the weights in {source!r} do not fit its config: {len(unfit)} tensors are missing or "
            f"of another shape, e.g. {unfit[0]}"
        )
