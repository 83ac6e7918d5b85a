"""A model's first layers and most used tokens, as a model of its own.

Inner layers hold most of what makes an embedding, so that the first third of a language model is a
good start for a small one (Sun et al., arXiv:1908.09355, start a student from its teacher's first
layers), and a vocabulary for the world's languages is mostly rows that a corpus never reads.
"""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from embedlm.backbone import load_backbone
from embedlm.backbone.config import stored_dtype
from embedlm.backbone.tensors import read_tensors
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.compress.vocabulary import (
    check_round_trip,
    count_tokens,
    cut_state,
    kept_ids,
    tokenizer_state,
)
from embedlm.embedder import Embedder
from embedlm.encode.executor import Executor
from embedlm.errors import InputError, UnsupportedError
from embedlm.jobs.json_files import read_object, write_json
from embedlm.jobs.names import check_apart
from embedlm.loader import load
from embedlm.readout import Readout
from embedlm.schema.arguments import check_arguments, usable_path

__all__ = ["check_layers", "prune"]

_LAYER = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
        r"(?:^|\.)layers\.(\d+)\.",
    ),
    "bert": r"(?:^|\.)encoder\.layer\.(\d+)\.",
}
"""How the names of a layer's weights tell its number, by the type of the network."""
_OF_TOKENS = re.compile(
    r"(^|\.)((embed_tokens|word_embeddings)\.weight|lm_head\.(weight|bias)"
    r"|cls\.predictions\.(bias|decoder\.(weight|bias)))$"
)
"""Weights with a row for each token."""
_TRIED = 2000
"""Texts on which the cut tokenizer is tried."""


def prune(
    model: str | Path,
    output: str | Path,
    *,
    layers: int | None = None,
    vocabulary: int | None = None,
    texts: Iterable[str] = (),
    save_dtype: str | None = None,
    device: Any = None,
) -> dict[str, Any]:
    """Write a model with a model's first layers and most used tokens, and its recipe.

    Args:
        model: a folder, hub id or GGUF file.
        output: folder of the new model.
        layers: how many are kept; None: all.
        vocabulary: how many tokens are kept; None: all.
        texts: that the tokens are counted in.
        save_dtype: numbers of the weights; None: those of the model's files.
        device: where the model is loaded to be tried.

    Returns:
        `layers`, `tokens` and `parameters`, each before and after, and `length`: how many times as
        many tokens the texts have.

    Raises:
        InputError: more layers or tokens than there are, fewer tokens than must stay, or no texts.
        UnsupportedError: an architecture or a tokenizer that cannot be cut.
    """
    check_arguments("prune", model=model, output=output, layers=layers, vocabulary=vocabulary)
    check_arguments("save_pretrained", save_dtype=save_dtype)
    if Path(model).exists():
        check_apart(usable_path(output), [model])
    whole = _opened(str(model), device)
    save_dtype = save_dtype or stored_dtype(whole.backbone.name)
    layer_count = whole.backbone.layer_count
    facts = {
        "layers": [layer_count, layers or layer_count],
        "tokens": [len(whole.tokenizer), len(whole.tokenizer)],
        "length": 1.0,
    }
    if layers is None and vocabulary is None:
        whole.save_pretrained(usable_path(output), save_dtype=save_dtype)
        parts = [whole.backbone.network, whole.backbone.head]
        weights = {weight for part in parts if part is not None for weight in part.parameters()}
        return facts | {"parameters": [sum(weight.numel() for weight in weights)] * 2}
    check_layers(whole.backbone.text_config, layers, str(model))
    sample = list(texts)
    if vocabulary is not None and not sample:
        raise InputError("a vocabulary is cut by the texts that it is for; give some")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        whole.executor.save(folder)
        whole.tokenizer.save_pretrained(folder)
        keep = None
        if vocabulary is not None:
            keep, facts["length"] = _cut_tokenizer(whole.tokenizer, folder, sample, vocabulary)
            facts["tokens"] = [len(whole.tokenizer), len(keep)]
        facts["parameters"] = _cut_weights(folder, layers, keep)
        cut = _reopened(whole, folder, device)
    cut.save_pretrained(usable_path(output), save_dtype=save_dtype)
    return facts


def check_layers(config: Any, layers: int | None, name: str) -> None:
    """Refuse an architecture that cannot be cut, or more layers than there are.

    Raises:
        InputError: see there.
        UnsupportedError: see there.
    """
    kind = str(config.model_type)
    if kind not in _LAYER:
        raise UnsupportedError(
            f"{name!r} is of the architecture {kind!r}, which cannot be cut; allowed: "
            f"{', '.join(_LAYER)}"
        )
    if layers is not None and layers > int(config.num_hidden_layers):
        raise InputError(
            f"{layers} layers were asked for, and {name!r} has {config.num_hidden_layers}; give at "
            "most as many"
        )


def _opened(model: str, device: Any) -> Embedder:
    """Return a model with its language-model head, where it has one."""
    options: dict[str, Any] = {"device": device, "dtype": "float32"}
    try:
        return load(model, lm_head=True, **options)
    except UnsupportedError:
        return load(model, **options)


def _reopened(whole: Embedder, folder: Path, device: Any) -> Embedder:
    """Return the cut model with the recipe and the layers of the whole one."""
    recipe, head = whole.recipe, whole.backbone.head is not None
    recipe = recipe.override({"backbone.adapters": ()})
    backbone = load_backbone(
        str(folder), recipe.backbone, device=device, dtype="float32", head=head or "if_cheap"
    )
    readout = Readout(backbone, recipe, whole.readout.parts, statistics=None)
    return Embedder(readout, Executor(backbone), name=whole.name)


def _cut_tokenizer(
    tokenizer: Any, folder: Path, texts: Sequence[str], size: int
) -> tuple[list[int], float]:
    """Write a tokenizer of fewer tokens; return their former ids, and how much longer texts are."""
    state = tokenizer_state(tokenizer)
    keep = kept_ids(state, count_tokens(tokenizer, texts), size)
    for name in ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)  # of all tokens; tokenizer.json alone says enough
    cut = json.dumps(cut_state(state, keep), ensure_ascii=False)
    (folder / "tokenizer.json").write_text(cut, encoding="utf-8")
    new = {old: number for number, old in enumerate(keep)}
    settings = read_object(folder / "tokenizer_config.json")
    decoder = settings.pop("added_tokens_decoder", None)
    if decoder is not None:
        settings["added_tokens_decoder"] = {str(new[int(i)]): t for i, t in decoder.items()}
    write_json(folder / "tokenizer_config.json", settings)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            content = _renumbered(read_object(folder / name), new)
            write_json(folder / name, content)
    config = read_object(folder / "config.json")
    write_json(folder / "config.json", config | {"vocab_size": len(keep)})
    after = load_tokenizer(str(folder))
    return keep, check_round_trip(tokenizer, after, itertools.islice(texts, _TRIED))


def _renumbered(content: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    """Return settings whose ids of special tokens are the new ones; what is cut away has none."""

    def ids(value: Any) -> Any:
        if isinstance(value, list):
            return [new[one] for one in value if one in new] or None
        return new.get(value) if isinstance(value, int) else value

    return {
        key: ids(value) if key.endswith(("_token_id", "_token_ids")) else value
        for key, value in content.items()
    }


def _cut_weights(folder: Path, layers: int | None, keep: Sequence[int] | None) -> list[int]:
    """Cut a folder's weights and config; return the numbers of parameters before and after."""
    config = read_object(folder / "config.json")
    pattern = re.compile(_LAYER[config["model_type"]])
    rows = None if keep is None else torch.tensor(list(keep))
    before, kept = 0, {}
    for name, tensor in read_tensors(folder, "model.safetensors").items():
        before += tensor.numel()
        number = pattern.search(name)
        if layers is not None and number is not None and int(number[1]) >= layers:
            continue
        if rows is not None and _OF_TOKENS.search(name):
            tensor = tensor.index_select(0, rows)
        kept[name] = tensor.clone()
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    if layers is not None:
        whole = int(config["num_hidden_layers"])
        config = {
            key: value[:layers] if isinstance(value, list) and len(value) == whole else value
            for key, value in config.items()
        }
        config["num_hidden_layers"] = layers
        if "max_window_layers" in config:  # layers below it have no window
            config["max_window_layers"] = min(int(config["max_window_layers"]), layers)
        write_json(folder / "config.json", config)
    return [before, sum(tensor.numel() for tensor in kept.values())]
