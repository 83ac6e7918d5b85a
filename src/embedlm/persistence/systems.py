"""Published systems told by their files, where the layout alone does not say how they prompt."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from embedlm.errors import ModelError
from embedlm.jobs.json_files import optional_json, read_json
from embedlm.schema.recipe import Recipe, recipes
from embedlm.schema.template import escape

__all__ = ["instructed", "recipe_of_checkpoint", "recognise"]

_ICL_TOKENS = {"<instruct>", "<query>", "<response>"}
_TASK = re.compile(r"Instruct: (?P<task>.+)(?P<end>\nQuery: ?)", re.DOTALL)
_MAIN_PROMPTS = ("query", "web_search_query")


@lru_cache(maxsize=1)
def _checkpoints() -> dict[str, str]:
    """Return the recipe's name for each published checkpoint."""
    found: dict[str, str] = {}
    for name in recipes():
        for checkpoint in Recipe.load(name).checkpoints:
            found.setdefault(checkpoint.lower(), name)
    return found


def recipe_of_checkpoint(source: str) -> Recipe | None:
    """Return the recipe that names this hub id among its checkpoints."""
    name = _checkpoints().get(source.lower())
    return None if name is None else Recipe.load(name)


def recognise(folder: Path) -> Recipe | None:
    """Return the recipe of a system whose files give it away."""
    config = optional_json(folder / "config.json")
    if config.get("model_type") == "nvembed":
        return _nv_embed(config)
    if config.get("model_type") == "jina_embeddings_v3":
        return Recipe.load("jina-v3")
    if (folder / "sparse_linear.pt").is_file() and (folder / "colbert_linear.pt").is_file():
        return Recipe.load("bge-m3")
    settings = optional_json(folder / "config_sentence_transformers.json")
    if "query_length" in settings and "document_length" in settings:
        return _colbert(settings)
    if settings.get("model_type") == "MultiVectorEncoder":
        return _multi_vector(folder, settings)
    if (folder / "llm2vec_config.json").is_file():
        adapter = optional_json(folder / "adapter_config.json")
        base = config.get("_name_or_path") or adapter.get("base_model_name_or_path")
        return _llm2vec(optional_json(folder / "llm2vec_config.json"), str(base))
    auto_map = config.get("auto_map")
    if isinstance(auto_map, dict) and any("gritlm" in str(value) for value in auto_map.values()):
        return Recipe.load("gritlm")
    added = optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(added, dict):
        tokens = {str(entry.get("content")) for entry in added.values() if isinstance(entry, dict)}
        if tokens >= _ICL_TOKENS:
            return Recipe.load("bge-icl")
    return None


def _nv_embed(config: dict[str, Any]) -> Recipe:
    """Return the recipe of NV-Embed's version."""
    name = "nv-embed-v1" if "v1" in str(config.get("_name_or_path")).lower() else "nv-embed-v2"
    given = config.get("latent_attention_config") or {}
    return Recipe.load(name).override({"normalize": given.get("output_normalize", True)})


def _colbert(settings: dict[str, Any]) -> Recipe:
    """Return ColBERT's recipe with a folder's prefixes, lengths and skip list (PyLate)."""
    prefixes = {
        role: escape(str(settings.get(f"{role}_prefix") or "")) for role in ("query", "document")
    }
    length = int(settings["query_length"])
    return Recipe.load("colbert").override(
        {
            "prompt.default": prefixes["document"] + "{text}",
            "prompt.query": prefixes["query"] + "{text}",
            "prompt.document": prefixes["document"] + "{text}",
            "prompt.max_length": {"query": length, "document": int(settings["document_length"])},
            "prompt.expansion.length": length,
            "prompt.expansion.attended": bool(settings.get("attend_to_expansion_tokens", False)),
            "heads.multi_vector.skip": list(settings.get("skiplist_words") or ()),
        }
    )


def _multi_vector(folder: Path, settings: dict[str, Any]) -> Recipe:
    """Return the recipe of a MultiVectorEncoder (sentence-transformers 6)."""
    own = optional_json(folder / "sentence_bert_config.json")
    listed = folder / "modules.json"
    modules: list[dict[str, Any]] = read_json(listed) if listed.is_file() else []
    kinds = {str(entry["type"]).rsplit(".", 1)[-1]: folder / entry["path"] for entry in modules}
    mask = optional_json(kinds.get("MultiVectorMask", folder) / "config.json")
    prompts = settings.get("prompts") or {}
    named = {
        role: escape(str(prompts.get(role) or "")) + "{text}" for role in ("query", "document")
    }
    expansion = own.get("query_expansion") or {}
    length = expansion.get("length") or own.get("query_length")
    longest = own.get("max_seq_length")
    limits = {"query": length or longest, "document": own.get("document_length") or longest}
    changes = {
        "prompt.default": named["document"],
        "prompt.query": named["query"],
        "prompt.document": named["document"],
        "prompt.clean": "none",
        "prompt.max_length": {role: n for role, n in limits.items() if n} or None,
        "prompt.expansion": None,
        "heads.multi_vector.skip": list(mask.get("skiplist_words") or ()),
        "heads.multi_vector.normalize": "Normalize" in kinds,
    }
    if expansion:
        changes["prompt.expansion"] = {
            "length": int(expansion["length"]),
            "attended": bool(expansion.get("attend")),
        }
    return Recipe.load("colbert").override(changes)


_LLM2VEC_CHAT = {
    "llama-3-8b-instruct": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "mistral-7b-instruct": ("[INST] ", " [/INST]"),
    "llama-2-7b-chat": ("[INST] ", " [/INST]"),
    "gemma-2-9b-it": ("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "qwen2-1.5b-instruct": ("<|im_start|>user\n", "<|im_end|>"),
    "qwen2-7b-instruct": ("<|im_start|>user\n", "<|im_end|>"),
}
"""What LLM2Vec writes around instruction and text, by a part of the base's name."""


def _llm2vec(config: dict[str, Any], base: str) -> Recipe:
    """Return LLM2Vec's recipe with the pooling of the folder's own config.

    A base that is a chat model has its turn written around the text; what closes the turn is pooled
    with the text, as the reference does.
    """
    chat = next((turn for name, turn in _LLM2VEC_CHAT.items() if name in base.lower()), None)
    kinds = {"weighted_mean": "weighted_mean", "eos_token": "last", "last_token": "last"}
    changes: dict[str, Any] = {"pooling.kind": kinds.get(str(config.get("pooling_mode")), "mean")}
    if config.get("max_length"):
        changes["prompt.max_length"] = int(config["max_length"])
    if config.get("skip_instruction") is False:
        changes |= {"pooling.over": "all", "pooling.boundary": "offsets"}
    plain = Recipe.load("llm2vec")
    if chat is not None:
        before, after = chat
        for role in ("default", "document"):
            template = getattr(plain.prompt, role)
            changes[f"prompt.{role}"] = before + str(template) + after
        changes["prompt.clean"] = "strip"
    return plain.override(changes)


def instructed(prompts: dict[str, Any]) -> tuple[str, str] | None:
    """Return (template, instruction) where prompts read `Instruct: ...`, the form of E5-Mistral.

    The instruction is the one of the prompt for queries, which is replaced where a caller gives
    another.
    """
    ordered = [name for name in _MAIN_PROMPTS if name in prompts]
    for name in [*ordered, *(name for name in prompts if name not in ordered)]:
        found = _TASK.fullmatch(str(prompts[name]))
        if found:
            head = f"Instruct: {{instruction}}{found['end']}"
            return f"{{?instruction}}{head}{{/instruction}}{{text}}", found["task"]
    return None


def closes_with_eos(folder: Path) -> bool:
    """Tell whether a folder's tokenizer closes texts with its EOS."""
    config = optional_json(folder / "tokenizer_config.json")
    eos = config.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    file = folder / "tokenizer.json"
    if eos is None or not file.is_file():
        return False
    try:
        tokens = Tokenizer.from_file(str(file)).encode("a").tokens
    except Exception as error:  # the library raises bare Exceptions
        raise ModelError(f"{file} cannot be read: {error}") from error
    return bool(config.get("add_eos_token")) or tokens[-1:] == [eos]
