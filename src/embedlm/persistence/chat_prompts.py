"""Prompts of folders in which a chat template writes the texts (sentence-transformers 6).

A text is the user's turn, and a prompt the system's before it. What stands around the text is
rendered once, when the folder is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedlm.backbone.tokenizer import load_tokenizer
from embedlm.errors import ModelError, TemplateError, UnsupportedError
from embedlm.persistence.settings import Draft
from embedlm.prompt.chat import closed_turns, places_in
from embedlm.schema.template import escape

__all__ = ["write_chats"]

_MARK = "embedlmtextmark"
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_STRUCTURED = {"auto": None, "flat": False, "structured": True}
_ADVICE = "Give recipe= to say how the model is prompted"


def write_chats(draft: Draft, default: str | None) -> None:
    """Put every prompt of a folder into a chat.

    Args:
        draft: with all files read.
        default: the name of the prompt of calls that name none.

    Raises:
        ModelError: the folder has no chat template.
        UnsupportedError: the template cannot write a text, or the model reads texts otherwise.
    """
    _check(draft)
    tokenizer = load_tokenizer(str(draft.folder))
    if not tokenizer.chat_template:
        raise ModelError(
            f"{draft.folder}: modality_config has texts written as messages, and there is no chat "
            "template (chat_template.jinja, or chat_template in tokenizer_config.json)"
        )
    prompts = {name: prompt or "" for name, prompt in draft.facts.get("prompts", {}).items()}
    roles = dict.fromkeys(("query", "document", *prompts))
    names = {role: prompts.get(role, "") for role in roles}
    changes = draft.changes
    plain, strips = _template(draft, tokenizer, prompts.get(default or "", ""), None)
    written = {role: _template(draft, tokenizer, text, role)[0] for role, text in names.items()}
    changes["prompt.default"] = plain
    changes |= {f"prompt.{role}": written.pop(role) for role in ("query", "document")}
    changes["prompt.roles"] = written
    changes["prompt.instruction"] = None
    changes["prompt.clean"] = "strip" if strips else "none"
    changes["prompt.special_tokens"] = _special(draft.folder, tokenizer, plain)
    if changes.get("pooling.boundary") == "count_prompt":  # there, chats are pooled whole
        del changes["pooling.boundary"], changes["pooling.over"]


def _check(draft: Draft) -> None:
    """Refuse a model that EmbedLM can read texts of by a plain prompt only."""
    kind = None
    if draft.facts.get("late_interaction"):
        kind = "a model of token vectors"
    elif draft.facts.get("lower"):
        kind = "do_lower_case"
    if kind is not None:
        raise UnsupportedError(
            f"{draft.folder}: modality_config has texts written as messages by the chat template, "
            f"which is not supported with {kind}. {_ADVICE}"
        )


def _template(draft: Draft, tokenizer: Any, prompt: str, role: str | None) -> tuple[str, bool]:
    """Return the template of a prompt, and whether it strips the text."""
    options = draft.facts.get("processing", {}).get("chat_template", {})
    if role in ("query", "document"):
        options = {"task": role, **options}

    def write(texts: Sequence[str]) -> str:
        turns = [("system", prompt)] if prompt else []
        turns += [("user", text) for text in texts]
        structured = _STRUCTURED[draft.facts["message"]]
        return closed_turns(turns, tokenizer, structured=structured, options=options)

    try:
        written, strips = places_in(write, [_MARK])
    except TemplateError as error:
        raise UnsupportedError(
            f"the chat template in {str(draft.folder)!r} {error}. {_ADVICE}"
        ) from error
    return escape(written).replace(_MARK, "{text}"), strips


def _special(folder: Path, tokenizer: Any, template: str) -> str:
    """Return which special tokens stand around a chat.

    A tokenizer adds none of its own; a processor does, unless the chat begins with a BOS.
    """
    bos = tokenizer.bos_token
    if not any((folder / name).is_file() for name in _PROCESSORS):
        return "none"
    return "none" if bos and template.startswith(escape(bos)) else "tokenizer"
