"""A model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from embedlm.backbone.config import load_config, unloadable
from embedlm.backbone.config_fields import check_tokenizer
from embedlm.backbone.tokenizer_file import build_tokenizer
from embedlm.errors import ModelError
from embedlm.jobs.json_files import optional_json
from embedlm.prompt.special import keep_declared

__all__ = ["load_tokenizer"]


def load_tokenizer(source: str, config: Any = None) -> Any:
    """Return the fast tokenizer of a folder or hub id, as its files declare it.

    Args:
        source: folder or hub id.
        config: of the network; None: the one that lies there too.
    """
    silent: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    try:
        file = cached_file(source, "tokenizer_config.json", **silent)
    except Exception as error:  # the hub's own errors have no common base
        raise unloadable(source, "tokenizer", error) from error
    declared = optional_json(Path(file)) if file is not None else {}
    check_tokenizer(Path(str(file)), declared)
    try:
        config = load_config(source) if config is None else config
        tokenizer = build_tokenizer(source, config, declared)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise unloadable(source, "tokenizer", error) from error
    if file is not None and getattr(tokenizer, "is_fast", False):
        keep_declared(tokenizer, declared)
    return tokenizer
