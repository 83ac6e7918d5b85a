"""Folders of sentence-transformers and PyLate, read into a recipe; `written.py` writes them.

What each key of their files means stands in `layouts.py`; here is what only the files together say:
prompts, the order of modules, lengths and expansion of token vectors.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import optional_json
from embedlm.persistence.chat_prompts import write_chats
from embedlm.persistence.layouts import (
    LATE_INTERACTION,
    OUTPUTS,
    PYLATE,
    SETTINGS,
    TRANSFORMER,
    TRANSFORMER_FILES,
)
from embedlm.persistence.listing import (
    LISTING,
    Modules,
    check_order,
    read_listing,
    read_module,
)
from embedlm.persistence.settings import (
    COUNT,
    Draft,
    Setting,
    read_settings,
)
from embedlm.schema.arguments import short
from embedlm.schema.recipe import Recipe
from embedlm.schema.template import escape

__all__ = [
    "LISTING",
    "SETTINGS_FILE",
    "is_late_interaction",
    "read_folder",
    "table_truncation",
]

SETTINGS_FILE = "config_sentence_transformers.json"
_TASK = re.compile(r"Instruct: (?P<task>.+)(?P<end>\nQuery: ?)", re.DOTALL)
_TASK_PROMPTS = ("query", "web_search_query")


def is_late_interaction(folder: Path) -> bool:
    """Tell whether a folder is one of token vectors (PyLate, MultiVectorEncoder)."""
    settings = optional_json(folder / SETTINGS_FILE)
    kind = settings.get("model_type")
    marked = any(setting.key in settings for setting in PYLATE)
    return kind in ("ColBERT", "MultiVectorEncoder") or (kind is None and marked)


def read_folder(folder: Path, base: Recipe, modules: Modules | None = None) -> Recipe:
    """Return the recipe that a folder's modules.json, and what it points to, ask for.

    Args:
        folder: of the model.
        base: the recipe whose fields hold where the folder says nothing.
        modules: of one of its routes; None: those that modules.json lists.

    Raises:
        ModelError: a file that cannot be read, or a path outside the folder.
        UnsupportedError: a module, a key or a value that no recipe can express.
    """
    draft = Draft(folder)
    late = is_late_interaction(folder)
    draft.facts["late_interaction"] = late
    settings = SETTINGS + (PYLATE if late else ())
    _read(draft, folder / SETTINGS_FILE, settings)
    modules = read_listing(folder) if modules is None else modules
    _read_input(draft, *(modules[0] if modules else ("Transformer", folder)))
    for kind, path in modules:
        read_module(draft, kind, path)
    kind = check_order(draft, OUTPUTS)
    _check_model_type(draft, kind)
    if late:
        _late_interaction(draft)
    else:
        _prompts(draft)
    if "message" in draft.facts:
        write_chats(draft, draft.facts.get("default_prompt_name"))
    _of_one_kind(draft, kind)
    if draft.facts.get("lower"):
        draft.changes["prompt.clean"] = "lower"
    return base.override(draft.changes)


def _read(draft: Draft, file: Path, settings: tuple[Setting, ...]) -> None:
    read_settings(draft, file, optional_json(file), settings)


def _read_input(draft: Draft, kind: str, place: Path) -> None:
    """Read how long a text may be, and what else stands beside what reads it."""
    if kind == "StaticEmbedding":
        cut = table_truncation(place)
        if cut is not None:
            draft.facts["max_seq_length"] = cut[0]
    named = next((name for name in TRANSFORMER_FILES if optional_json(place / name)), None)
    if named is not None and kind.endswith("Transformer"):
        _read(draft, place / named, TRANSFORMER)


def table_truncation(place: Path) -> tuple[int, str] | None:
    """Return the tokens that a table's tokenizer keeps of a text, and the side where it cuts.

    None: it cuts nothing. Other settings than those of tokenizer.json do not count there.

    Raises:
        ModelError: the file cannot be read, or says something else.
    """
    file = place / "tokenizer.json"
    cut = optional_json(file).get("truncation")
    if cut is None:
        return None
    fields: dict[str, Any] = cut if isinstance(cut, dict) else {}
    side, length = str(fields.get("direction", "right")).lower(), fields.get("max_length")
    if not fields or side not in ("left", "right") or not COUNT.fit(length):
        raise ModelError(
            f"{file}: truncation is {short(cut)}; allowed are max_length, a whole number above 0, "
            "and direction, Left or Right"
        )
    return int(length or 0), side


def _prefix(text: str | None) -> str:
    return escape(text or "") + "{text}"


def _prompts(draft: Draft) -> None:
    """Turn named prefixes into templates, as sentence-transformers resolves them.

    A call without a prompt takes the default prompt. Queries and documents take the prompt of that
    name, which is empty where the folder has none, whatever the default is.
    """
    prompts: dict[str, str] = {k: v or "" for k, v in draft.facts.get("prompts", {}).items()}
    default = _default_prompt(draft, prompts)
    changes = draft.changes
    changes["prompt.default"] = "{text}" if default is None else _prefix(prompts.get(default))
    further = [name for name in prompts if name not in ("query", "document")]
    changes["prompt.roles"] = {name: _prefix(prompts[name]) for name in further}
    for role in ("query", "document"):
        if role in prompts or default is not None:
            changes[f"prompt.{role}"] = _prefix(prompts.get(role))
    _take_instruction(draft, prompts, default)
    if draft.facts.get("max_seq_length"):
        changes["prompt.max_length"] = draft.facts["max_seq_length"]


def _default_prompt(draft: Draft, prompts: Mapping[str, str]) -> str | None:
    """Return the name of the prompt of calls that name none; None: there is no such prompt."""
    name: str | None = draft.facts.get("default_prompt_name")
    if name is not None and name not in prompts and name not in ("query", "document"):
        raise ModelError(
            f"{draft.folder / SETTINGS_FILE}: default_prompt_name is {name!r}, which is none of "
            f"the prompts: {', '.join(prompts) or 'there are none'}"
        )
    return name


def _take_instruction(draft: Draft, prompts: Mapping[str, str], default: str | None) -> None:
    """Make the task of a prompt `Instruct: ...` (E5-Mistral's form) one that a call can replace.

    Queries keep a prompt of their own that has another form.
    """
    ordered = [name for name in _TASK_PROMPTS if name in prompts]
    ordered += [name for name in prompts if name not in ordered]
    name = next((name for name in ordered if _split_task(prompts[name]) is not None), None)
    if name is None or draft.changes.get("pooling.boundary") == "count_prompt":
        return
    split = _split_task(prompts[name])
    assert split is not None
    template, task = split
    instruction: dict[str, str] = {}
    if name == "query" or not prompts.get("query"):
        draft.changes["prompt.query"] = template
        if name in _TASK_PROMPTS:
            instruction["query"] = task
    own = None if default is None else _split_task(prompts.get(default, ""))
    if default is None or (own is not None and own[0] == template):
        draft.changes["prompt.default"] = template
        if own is not None:
            instruction["default"] = own[1]
    draft.changes["prompt.instruction"] = instruction or None


def _split_task(prompt: str) -> tuple[str, str] | None:
    """Return (template, task) of a prompt `Instruct: task`, the form of E5-Mistral; else None."""
    match = _TASK.fullmatch(prompt)
    if match is None:
        return None
    head = f"Instruct: {{instruction}}{match['end']}"
    return f"{{?instruction}}{head}{{/instruction}}{{text}}", match["task"]


_MODEL_TYPES = {
    "dense": ("SentenceTransformer",),
    "sparse": ("SparseEncoder",),
    "multi_vector": ("ColBERT", "MultiVectorEncoder"),
}
"""What config_sentence_transformers.json calls each kind of model."""


def _check_model_type(draft: Draft, kind: str) -> None:
    given = draft.facts.get("model_type")
    if given is not None and draft.stages and given not in _MODEL_TYPES[kind]:
        raise UnsupportedError(
            f"{draft.folder / SETTINGS_FILE}: model_type is {given!r}, and the modules "
            f"{', '.join(draft.stages)} make up a {' or '.join(_MODEL_TYPES[kind])}; correct one, "
            "or give recipe= to say how the model is read"
        )


def _of_one_kind(draft: Draft, kind: str) -> None:
    """Take the settings that only one kind of model has."""
    facts, changes = draft.facts, draft.changes
    for key, owner in (("truncate_dim", "dense"), ("max_active_dims", "sparse")):
        if key in facts and kind != owner:
            raise UnsupportedError(
                f"{draft.folder / SETTINGS_FILE}: {key} is {facts[key]}, and only a "
                f"{_MODEL_TYPES[owner][0]} has {owner} vectors to cut; leave it out"
            )
    if kind != "multi_vector":
        _without_lengths(draft)
    if "score" in facts and kind != "multi_vector":
        raise UnsupportedError(
            f"{draft.folder / SETTINGS_FILE}: similarity_fn_name compares token vectors, and the "
            f"modules {', '.join(draft.stages)} give none; allowed: cosine, dot, euclidean, "
            "manhattan"
        )
    if "truncate_dim" in facts:  # there, vectors are cut after they are normalised
        changes |= {"dim": facts["truncate_dim"], "renormalize": False}
    if kind == "sparse":
        options = changes["heads"][0]["sparse"]
        options |= {"top_k": facts.get("max_active_dims")}
        options |= {"similarity": facts.get("similarity", "dot")}
    elif "similarity" in facts:
        changes["similarity"] = facts["similarity"]


def _without_lengths(draft: Draft) -> None:
    """Refuse lengths of one role where a recipe has one length for all."""
    for setting in LATE_INTERACTION:
        if draft.facts.get(setting.key) is not None:
            raise UnsupportedError(
                f"{draft.folder}: {setting.key} is {draft.facts[setting.key]}, which EmbedLM can "
                f"honour in a model of token vectors only, and the modules "
                f"{', '.join(draft.stages)} make up another; leave it out, and set max_seq_length "
                "for all texts, or give recipe= to say how the model is read"
            )


def _late_interaction(draft: Draft) -> None:
    """Put together what the files say of token vectors."""
    facts, changes = draft.facts, draft.changes
    prompts = {name: prompt or "" for name, prompt in facts.get("prompts", {}).items()}
    for role in ("query", "document"):  # a prefix is written before a prompt of the same role
        prefix = facts.get(f"{role}_prefix", "")
        prompts[role] = prefix + prompts.get(role, "").removeprefix(prefix)
    # PyLate inserts its prefixes as tokens, so that white space after them does not count.
    flat = facts.get("model_type") != "MultiVectorEncoder"
    default = _default_prompt(draft, prompts) or ("document" if flat else None)
    templates = {name: _prefix(prompt) for name, prompt in prompts.items()}
    changes["prompt.default"] = "{text}" if default is None else templates[default]
    changes |= {f"prompt.{role}": templates.pop(role) for role in ("query", "document")}
    changes["prompt.roles"] = templates
    changes["prompt.clean"] = "strip" if flat else "none"
    changes["prompt.special_tokens_in_text"] = "tokens"  # as in every folder of the library
    length, expansion = _expansion(draft)
    limits = {"query": length, "document": facts.get("document_length")}
    longest = facts.get("max_seq_length")
    limits = {role: limit or longest for role, limit in limits.items()}
    changes["prompt.max_length"] = {role: n for role, n in limits.items() if n} or None
    changes["prompt.expansion"] = expansion
    skip = facts.get("skip", list(string.punctuation) if flat else [])
    changes |= {
        "heads.multi_vector.skip": skip,
        "heads.multi_vector.normalize": flat or "Normalize" in draft.stages,
        "heads.multi_vector.score": facts.get("score", "sum"),
    }


def _expansion(draft: Draft) -> tuple[int | None, dict[str, Any] | None]:
    """Return the tokens of a query, and how it is filled up."""
    facts = draft.facts
    length: int | None = facts.get("query_length")
    if "query_expansion" in facts:
        expansion = facts["query_expansion"]
        if expansion is None:
            return length, None
        least = expansion["length"]
        filled = {"length": least, "attended": expansion.get("attend", False)}
        if length is not None and length < least:
            raise ModelError(
                f"{draft.folder}: query_length is {length}, and query_expansion fills queries up "
                f"to {least} tokens; correct one of them"
            )
        # Under "min", what is longer stays so.
        return length if expansion["strategy"] == "min" else least, filled
    if facts.get("model_type") == "MultiVectorEncoder" or facts.get("do_query_expansion") is False:
        return length, None
    length = length or 32
    return length, {"length": length, "attended": facts.get("attend", False)}
