"""Chats as strings, by the chat template of a tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embedlm.errors import TemplateError
from embedlm.schema.prompt import Message
from embedlm.schema.template import OPTIONAL_SLOTS, SLOTS, escape

__all__ = ["chat_template", "closed_turns", "places_in", "render_chat"]

Turn = Mapping[str, str]
_PARTS = ("content[0]", ".type", "'type'", '"type"', "message.content[")
"""What the source of a chat template has where it reads a content of several parts."""


def chat_template(messages: Sequence[Message], tokenizer: Any) -> str:
    """Return a chat as one template string, by the tokenizer's chat template.

    A last turn by the assistant is left open, so that generation would go on after it. A tokenizer
    without a chat template gets the turns' contents on lines of their own.

    Raises:
        TemplateError: the chat template cannot render these turns.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if not getattr(tokenizer, "chat_template", None):
        return "\n".join(turn["content"] for turn in turns)
    # Slots must survive the template engine, and its own text may hold braces.
    names = [*SLOTS, *(f"{sign}{slot}" for slot in OPTIONAL_SLOTS for sign in "?/")]
    marks = {f"{{{name}}}": f"\x02{name}\x03" for name in names}
    for turn in turns:
        for slot, mark in marks.items():
            turn["content"] = turn["content"].replace(slot, mark)
    rendered = escape(render_chat(turns, tokenizer))
    for slot, mark in marks.items():
        if mark not in rendered and any(mark in turn["content"] for turn in turns):
            raise TemplateError(
                f"the tokenizer's chat template leaves out or changes the {slot} of a turn; write "
                "the prompt as a string instead of a chat, or correct the template "
                "(chat_template.jinja, or chat_template in tokenizer_config.json)"
            )
        rendered = rendered.replace(mark, slot)
    return rendered


def render_chat(turns: Sequence[Turn], tokenizer: Any, **values: Any) -> str:
    """Return a chat as the string that the model goes on from.

    A last turn by the assistant is left open; else the header of the assistant's turn follows. A
    chat template that takes no system turn, or leaves it out, gets its text at the head of the
    user's turn.

    Args:
        turns: of the chat.
        tokenizer: that has the template.
        values: which the template may read, such as enable_thinking.

    Raises:
        TemplateError: the chat template cannot render these turns.
    """
    if turns[0]["role"] != "system":
        return _applied(turns, tokenizer, values)
    try:
        rendered = _applied(turns, tokenizer, values)
    except TemplateError:
        return _applied(_without_system(turns), tokenizer, values)
    if _keeps_system(turns, rendered):
        return rendered
    return _applied(_without_system(turns), tokenizer, values)


def _leading_system(turns: Sequence[Turn]) -> list[Turn]:
    return list(itertools.takewhile(lambda turn: turn["role"] == "system", turns))


def _keeps_system(turns: Sequence[Turn], rendered: str) -> bool:
    """Tell whether the system's text stands in a chat, beside where another turn has it too."""
    texts = {turn["content"].strip() for turn in _leading_system(turns)} - {""}
    counts = {text: sum(turn["content"].count(text) for turn in turns) for text in texts}
    return all(rendered.count(text) >= count for text, count in counts.items())


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns with the system's text at the head of the user's turn."""
    system = _leading_system(turns)
    head, rest = [turn["content"] for turn in system], list(turns[len(system) :])
    if rest and rest[0]["role"] == "user":
        head.append(rest.pop(0)["content"])
    return [{"role": "user", "content": "\n\n".join(head)}, *rest]


def _applied(turns: Sequence[Turn], tokenizer: Any, values: Mapping[str, Any]) -> str:
    is_open = turns[-1]["role"] == "assistant"
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                tokenize=False,
                continue_final_message=is_open,
                add_generation_prompt=not is_open,
                **values,
            )
        )
    except Exception as error:  # a template raises whatever it likes
        roles = ", ".join(turn["role"] for turn in turns)
        reason = " ".join(str(error).split())[:300]
        raise TemplateError(
            f"the tokenizer's chat template cannot render turns of {roles}: {reason}. Write the "
            "prompt as a string instead of a chat, or correct the template (chat_template.jinja, "
            "or chat_template in tokenizer_config.json)"
        ) from error


# -- chats that end with a text, as sentence-transformers writes them -------------------------


def closed_turns(
    turns: Sequence[tuple[str, str]],
    tokenizer: Any,
    *,
    structured: bool | None,
    options: Mapping[str, Any],
) -> str:
    """Return turns as the tokenizer's chat template writes them, without a header after them.

    Args:
        turns: (role, content) of each.
        tokenizer: that has the template.
        structured: whether a content is a list of parts; None: as the template's source reads it.
        options: arguments of the template.

    Raises:
        TemplateError: the template cannot write them.
    """
    if structured is None:
        structured = any(part in str(tokenizer.chat_template) for part in _PARTS)
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in turns
    ]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # a template raises whatever it likes
        roles = ", ".join(role for role, _ in turns)
        reason = " ".join(str(error).split())[:200]
        raise TemplateError(f"cannot write turns of {roles}: {reason}") from error


_PADDED = (" Ab  c\n", " D\ne ")


def places_in(write: Callable[[Sequence[str]], str], marks: Sequence[str]) -> tuple[str, bool]:
    """Return a chat with marks in the places of its texts, and whether it strips the texts.

    Args:
        write: returns the chat with some texts.
        marks: one for each text, at most two.

    Raises:
        TemplateError: the chat does not hold each text once, or holds it changed.
    """
    written = write(marks)
    if any(written.count(mark) != 1 for mark in marks):
        raise TemplateError("does not write each text once")
    padded = _PADDED[: len(marks)]
    rendered = write(padded)
    for strips in (False, True):
        expected = written
        for mark, text in zip(marks, padded, strict=True):
            expected = expected.replace(mark, text.strip() if strips else text)
        if expected == rendered:
            return written, strips
    raise TemplateError("changes the texts that it writes")
