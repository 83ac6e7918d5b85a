"""A model's first layers, most used tokens and busiest neurons, as a model of its own.

Inner layers hold most of what makes an embedding, so that the first third of a language model is a
good start for a small one (Sun et al., arXiv:1908.09355, start a student from its teacher's first
layers), a vocabulary for the world's languages is mostly rows that a corpus never reads, and of the
neurons between two layers a part does most of the work (see width.py).
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from embedlm.backbone import load_backbone
from embedlm.backbone.table import own_dtype
from embedlm.backbone.tensors import read_tensors
from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.compress.vocabulary import (
    check_round_trip,
    count_tokens,
    cut_state,
    kept_ids,
    tokenizer_state,
)
from embedlm.compress.width import TEXTS, kept_neurons, with_neurons
from embedlm.embedder import Embedder
from embedlm.encode.executor import Executor
from embedlm.encode.inputs import check_texts
from embedlm.errors import InputError, UnsupportedError
from embedlm.jobs.json_files import read_object, write_json
from embedlm.jobs.names import check_apart, check_new
from embedlm.loader import load
from embedlm.persistence.card import stated
from embedlm.readout import Readout
from embedlm.schema.arguments import check_arguments, usable_path

__all__ = ["check_cut", "check_no_adapters", "prune"]

log = logging.getLogger(__name__)

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
    intermediate: int | None = None,
    texts: Iterable[str] = (),
    save_dtype: str | None = None,
    device: Any = None,
) -> dict[str, Any]:
    """Write a model with a model's first layers, most used tokens and busiest neurons.

    Its recipe, and what comes after the pooling, stay.

    Args:
        model: a folder, hub id or GGUF file.
        output: folder of the new model.
        layers: how many are kept; None: all.
        vocabulary: how many tokens are kept; None: all.
        intermediate: how many neurons of each layer's feed-forward block are kept; None: all.
        texts: that the tokens are counted in, and of which the first 2000 run to measure neurons.
        save_dtype: numbers of the weights; None: those of the model's files.
        device: where the model is loaded to be tried.

    Returns:
        `layers`, `intermediate` (where the network has one such number), `tokens` and `parameters`,
        each before and after, and `length`: how many times as many tokens the texts have.

    Raises:
        InputError: more layers, tokens or neurons than there are, fewer tokens than must stay, no
            texts, or an output folder that is the model's or holds something else.
        UnsupportedError: an architecture or a tokenizer that cannot be cut, or adapters that would
            be lost.
    """
    asked = {"layers": layers, "vocabulary": vocabulary, "intermediate": intermediate}
    check_arguments("prune", model=model, output=output, texts=texts, **asked)
    check_arguments("save_pretrained", save_dtype=save_dtype)
    if Path(model).exists():
        check_apart(usable_path(output), [model])
    check_new(usable_path(output))
    whole = _opened(str(model), device)
    whole.check_one_route("cut")
    save_dtype = save_dtype or own_dtype(whole.backbone.name)
    facts = _facts(whole)
    if not any(asked.values()):
        check_new(output)
        whole.save_pretrained(usable_path(output), save_dtype=save_dtype)
        parts = [whole.backbone.network, whole.backbone.head]
        weights = {weight for part in parts if part is not None for weight in part.parameters()}
        return facts | {"parameters": [sum(weight.numel() for weight in weights)] * 2}
    check_cut(whole.backbone.text_config, layers, intermediate, str(model))
    check_no_adapters(whole, "which do not fit a network that is cut", "cut")
    layers = layers or whole.backbone.layer_count
    sample = _sample(texts, vocabulary, intermediate)
    keep = neurons = None
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        whole.executor.save(folder)
        whole.tokenizer.save_pretrained(folder)
        if vocabulary is not None:
            keep, facts["length"] = _cut_tokenizer(whole.tokenizer, folder, sample, vocabulary)
            facts["tokens"][1] = len(keep)
        if intermediate is not None:
            neurons = kept_neurons(whole, sample, layers, intermediate)
            facts["intermediate"][1] = intermediate
        facts["layers"][1] = layers
        facts["parameters"] = _cut_weights(folder, layers, keep, neurons)
        cut = _reopened(whole, folder, device, same_tokens=keep is None)
    check_new(output)  # another process may have written it in the meantime
    cut.save_pretrained(usable_path(output), save_dtype=save_dtype, **stated(whole.backbone.name))
    return facts


def check_cut(config: Any, layers: int | None, intermediate: int | None, name: str) -> None:
    """Refuse an architecture that cannot be cut, or more layers or neurons than there are.

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
    for asked, there, what in (
        (layers, int(config.num_hidden_layers), "layers"),
        (intermediate, int(config.intermediate_size), "neurons a layer (intermediate_size)"),
    ):
        if asked is not None and asked > there:
            raise InputError(
                f"{asked} {what} were asked for, and {name!r} has {there}; give at most as many"
            )


def check_no_adapters(whole: Embedder, why: str, then: str) -> None:
    """Refuse a model with switchable adapters, of which something would be lost.

    Args:
        whole: the model.
        why: they cannot be kept: ", which ...".
        then: what to do with the folder of a merged one.

    Raises:
        UnsupportedError: it says how to merge one of them.
    """
    if whole.adapters:
        names = list(whole.adapters)
        first = [*whole.recipe.backbone.adapters, f"adapters/{names[0]}"][0]
        raise UnsupportedError(
            f"{whole.name!r} has adapters that can be switched ({', '.join(names)}), {why}; merge "
            f"one first: embedlm.load(model, adapters=[{first!r}], merge=True)."
            f"save_pretrained(folder), and {then} that folder"
        )


def _facts(whole: Embedder) -> dict[str, Any]:
    """Return the sizes of a model, each before and after nothing is cut."""
    config = whole.backbone.text_config
    sizes = {
        "layers": whole.backbone.layer_count,
        "intermediate": getattr(config, "intermediate_size", None),
        "tokens": len(whole.tokenizer),
    }
    known = {name: [size, size] for name, size in sizes.items() if isinstance(size, int)}
    return known | {"length": 1.0}


def _sample(texts: Iterable[str], vocabulary: int | None, intermediate: int | None) -> list[str]:
    """Return the texts that a cut reads.

    Raises:
        InputError: there are none, and the cut needs some; or something else than a text.
    """
    if vocabulary is None and intermediate is None:
        return []
    read = texts if vocabulary is not None else itertools.islice(texts, TEXTS)
    sample = check_texts(read).texts
    if not sample:
        raise InputError(
            "a vocabulary and neurons are cut by the texts that the model is for; give some "
            "(--texts, texts=)"
        )
    return sample


def _opened(model: str, device: Any) -> Embedder:
    """Return a model with its language-model head, where it has one."""
    options: dict[str, Any] = {"device": device, "dtype": "float32"}
    try:
        return load(model, lm_head=True, **options)
    except UnsupportedError:
        return load(model, **options)


def _reopened(whole: Embedder, folder: Path, device: Any, *, same_tokens: bool) -> Embedder:
    """Return the cut model with the recipe and the layers of the whole one.

    What was fitted stays as far as it is true of the cut model's vectors and tokens.
    """
    recipe, head = whole.recipe, whole.backbone.head is not None
    recipe = recipe.override({"backbone.adapters": ()})
    backbone = load_backbone(
        str(folder), recipe.backbone, device=device, dtype="float32", head=head or "if_cheap"
    )
    statistics, same_vectors = whole.readout.statistics, backbone.static and same_tokens
    if statistics is not None and not same_vectors:
        if recipe.pooling.remove_components or not same_tokens:
            log.warning(
                "%s was fitted to a corpus, and what was learnt is not true of the cut model: fit "
                "it again (Embedder.fit, or --fit FILE)",
                whole.name,
            )
        statistics = statistics.without_components() if same_tokens else None
    readout = Readout(backbone, recipe, whole.readout.parts, statistics=statistics)
    ranges = whole.ranges if same_vectors else None
    return Embedder(readout, Executor(backbone), name=whole.name, ranges=ranges)


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


def _cut_weights(
    folder: Path, layers: int, keep: Sequence[int] | None, neurons: Sequence[Tensor] | None
) -> list[int]:
    """Cut a folder's weights and config; return the numbers of parameters before and after.

    Args:
        folder: of the whole model.
        layers: how many are kept.
        keep: the tokens that are kept; None: all.
        neurons: those of each layer that are kept; None: all.
    """
    config = read_object(folder / "config.json")
    pattern = re.compile(_LAYER[config["model_type"]])
    rows = None if keep is None else torch.tensor(list(keep))
    before, kept = 0, {}
    for name, tensor in read_tensors(folder, "model.safetensors").items():
        before += tensor.numel()
        number = pattern.search(name)
        if number is not None and int(number[1]) >= layers:
            continue
        if rows is not None and _OF_TOKENS.search(name):
            tensor = tensor.index_select(0, rows)
        if neurons is not None and number is not None:
            tensor = with_neurons(name[number.end() :], tensor, neurons[int(number[1])])
        kept[name] = tensor.clone()
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    if neurons is not None:
        config["intermediate_size"] = len(neurons[0])
    write_json(folder / "config.json", _with_layers(config, layers))
    return [before, sum(tensor.numel() for tensor in kept.values())]


def _with_layers(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return a config with what it says of the first layers."""
    whole = int(config["num_hidden_layers"])
    if layers == whole:
        return config
    config = {
        key: value[:layers] if isinstance(value, list) and len(value) == whole else value
        for key, value in config.items()
    }
    if "max_window_layers" in config:  # layers below it have no window
        config["max_window_layers"] = min(int(config["max_window_layers"]), layers)
    return config | {"num_hidden_layers": layers}
