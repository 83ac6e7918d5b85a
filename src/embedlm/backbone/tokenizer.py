"""A model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

from embedlm.backbone.config import load_config, unloadable
from embedlm.backbone.config_fields import check_tokenizer
from embedlm.jobs.json_files import optional_json
from embedlm.prompt.special import keep_declared

__all__ = ["load_tokenizer"]


def load_tokenizer(source: str, config: Any = None) -> Any:
    """Return the fast tokenizer of a folder or hub id, with the EOS that its config declares.

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
        # Given the config, the library does not ask a wrapper's own for remote code.
        config = load_config(source) if config is None else config
        tokenizer = AutoTokenizer.from_pretrained(
            source, config=config, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise unloadable(source, "tokenizer", error) from error
    if file is not None and getattr(tokenizer, "is_fast", False):
        keep_declared(tokenizer, declared)
    return tokenizer
