"""Where a model's small files lie: its folder, or a copy of them from the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from embedlm.persistence.layouts import TRANSFORMER_FILES

__all__ = ["layout_folder"]

_FILES = (
    "embedlm.yaml",
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    *TRANSFORMER_FILES,
    "tokenizer.json",
    "tokenizer_config.json",
    "*/config.json",
    "*_Dense/*",
    "llm2vec_config.json",
    "adapter_config.json",
    "latent_attention.safetensors",
    "token_layers.safetensors",
    "sparse_linear.pt",
    "colbert_linear.pt",
    "*/adapter_*",
)
"""The files that tell a layout, and the parts beside the network; not the network's weights."""


def layout_folder(source: str) -> Path:
    """Return the folder of a model, or of a hub model's small files.

    A hub model that cannot be reached gives a folder that does not exist: loading its network says
    what is wrong.
    """
    path = Path(source)
    if path.exists() or source.startswith((".", "/", "~")):
        return path
    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except Exception:  # the hub's client and its transport have no common base
        return path
