"""Published systems told by their files, where the layout alone does not say how they prompt."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from embedlm.jobs.json_files import optional_json
from embedlm.persistence.layouts import TRANSFORMER_FILES
from embedlm.persistence.sentence_transformers import LISTING, is_late_interaction, read_folder
from embedlm.persistence.settings import (
    COUNT,
    FLAG,
    Draft,
    Setting,
    keep,
    one_of,
    read_settings,
)
from embedlm.persistence.stanford import is_stanford, read_stanford
from embedlm.schema.recipe import Recipe, recipes

__all__ = ["recipe_of_checkpoint", "recognise"]

_SEEING = ("clip", "colpali", "colqwen2")
"""Types of networks that read images, and are named as their recipe."""
_ICL_TOKENS = {"<instruct>", "<query>", "<response>"}


@lru_cache(maxsize=1)
def _texts() -> dict[str, str]:
    """Return the text of each recipe's file in small letters."""
    folder = files("embedlm") / "recipes"
    return {
        name: (folder / f"{name}.yaml").read_text(encoding="utf-8").lower() for name in recipes()
    }


def recipe_of_checkpoint(source: str) -> Recipe | None:
    """Return the recipe that names this hub id among its checkpoints."""
    wanted = source.lower()
    for name, text in _texts().items():
        if wanted not in text:  # found in a millisecond; parsing all takes a hundred
            continue
        recipe = Recipe.load(name)
        if wanted in map(str.lower, recipe.checkpoints):
            return recipe
    return None


def recognise(folder: Path) -> Recipe | None:
    """Return the recipe of a system whose files give it away."""
    config = optional_json(folder / "config.json")
    if config.get("model_type") == "nvembed":
        return _as_long(_nv_embed(config), folder)
    listed = (folder / LISTING).is_file()
    # A model that was tuned from Jina's and has no adapters is read as its own files say.
    if config.get("model_type") == "jina_embeddings_v3" and (_has_adapters(folder) or not listed):
        return _as_long(Recipe.load("jina-v3"), folder)
    if (folder / "sparse_linear.pt").is_file() and (folder / "colbert_linear.pt").is_file():
        return _as_long(Recipe.load("bge-m3"), folder)
    if config.get("model_type") in _SEEING and not listed:
        return Recipe.load(str(config["model_type"]))
    if config.get("model_type") == "siglip" and not listed:
        return Recipe.load(_siglip(folder))
    if is_late_interaction(folder):
        return read_folder(folder, Recipe.load("colbert"))
    if is_stanford(folder) and not listed:
        return read_stanford(folder)
    if (folder / LLM2VEC_FILE).is_file():
        adapter = optional_json(folder / "adapter_config.json")
        base = config.get("_name_or_path") or adapter.get("base_model_name_or_path")
        return _llm2vec(folder, str(base))
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and any("gritlm" in str(value) for value in auto_map.values()):
        return Recipe.load("gritlm")
    return Recipe.load("bge-icl") if _added_tokens(folder) >= _ICL_TOKENS else None


def _siglip(folder: Path) -> str:
    """Return the recipe of a SigLIP: the first has a tokenizer that cleans texts."""
    kind = optional_json(folder / "tokenizer_config.json").get("tokenizer_class")
    return "siglip" if str(kind).startswith("SiglipTokenizer") else "siglip2"


def _added_tokens(folder: Path) -> set[str]:
    added = optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    entries = added.values() if isinstance(added, dict) else ()
    return {str(entry.get("content")) for entry in entries if isinstance(entry, dict)}


def _has_adapters(folder: Path) -> bool:
    return any(folder.glob("*/adapter_config.json")) or any(folder.glob("*/*/adapter_config.json"))


def _as_long(recipe: Recipe, folder: Path) -> Recipe:
    """Return a system's recipe with the length that its folder's own settings say."""
    draft, file = Draft(folder), folder / TRANSFORMER_FILES[0]
    asked = {key: value for key, value in optional_json(file).items() if key == "max_seq_length"}
    setting = Setting("max_seq_length", COUNT, keep("max_length"), null="missing")
    read_settings(draft, file, asked, (setting,))
    length = draft.facts.get("max_length")
    return recipe if length is None else recipe.override({"prompt.max_length": length})


def _nv_embed(config: dict[str, Any]) -> Recipe:
    """Return the recipe of NV-Embed's version."""
    name = "nv-embed-v1" if "v1" in str(config.get("_name_or_path")).lower() else "nv-embed-v2"
    sizes = config.get("latent_attention_config")
    normalize = sizes.get("output_normalize", True) if isinstance(sizes, dict) else True
    return Recipe.load(name).override({"normalize": normalize})


_LLM2VEC_CHAT = {
    "llama-3-8b-instruct": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "mistral-7b-instruct": ("[INST] ", " [/INST]"),
    "llama-2-7b-chat": ("[INST] ", " [/INST]"),
    "gemma-2-9b-it": ("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "qwen2-1.5b-instruct": ("<|im_start|>user\n", "<|im_end|>"),
    "qwen2-7b-instruct": ("<|im_start|>user\n", "<|im_end|>"),
}
"""What LLM2Vec writes around instruction and text, by a part of the base's name."""


LLM2VEC_FILE = "llm2vec_config.json"
_LLM2VEC_POOLINGS = {
    "mean": "mean",
    "weighted_mean": "weighted_mean",
    "eos_token": "last",
    "last_token": "last",
}
_LLM2VEC = (
    Setting(
        "pooling_mode",
        one_of(*_LLM2VEC_POOLINGS),
        lambda draft, value: draft.changes.update({"pooling.kind": _LLM2VEC_POOLINGS[value]}),
    ),
    Setting(
        "max_length",
        COUNT,
        lambda draft, value: draft.changes.update({"prompt.max_length": value}),
    ),
    Setting(
        "doc_max_length",
        COUNT,
        lambda draft, value: draft.changes.update({"prompt.text_length": value}),
    ),
    Setting("skip_instruction", FLAG, lambda draft, value: _pool_instruction(draft, value)),
)
"""Keys of LLM2Vec's own file."""


def _pool_instruction(draft: Draft, skip: bool) -> None:
    if not skip:
        draft.changes |= {"pooling.over": "all", "pooling.boundary": "offsets"}


def _llm2vec(folder: Path, base: str) -> Recipe:
    """Return LLM2Vec's recipe with the pooling of the folder's own config.

    A base that is a chat model has its turn written around the text; what closes the turn is pooled
    with the text, as the reference does.
    """
    chat = next((turn for name, turn in _LLM2VEC_CHAT.items() if name in base.lower()), None)
    # The reference's defaults where its file says nothing.
    draft = Draft(folder, {"pooling.kind": "mean", "prompt.text_length": 400})
    file = folder / LLM2VEC_FILE
    read_settings(draft, file, optional_json(file), _LLM2VEC)
    changes = draft.changes
    plain = Recipe.load("llm2vec")
    if chat is not None:
        before, after = chat
        for role in ("default", "document"):
            template = getattr(plain.prompt, role)
            changes[f"prompt.{role}"] = before + str(template) + after
        changes["prompt.clean"] = "strip"
    return plain.override(changes)
