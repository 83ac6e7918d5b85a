"""A tokenizer's chat template as the template of a pair."""

from __future__ import annotations

from typing import Any

from embedlm.errors import UnsupportedError
from embedlm.rerank.cross_encoder import Chat
from embedlm.schema.rerank import Method

__all__ = ["chat_method"]

_MARKS = ("embedlmquerymark", "embedlmdocumentmark")
_PARTS = ("content[0]", ".type", "'type'", '"type"', "message.content[")
"""What the source of a chat template has where it reads a content of several parts."""


def chat_method(method: Method, tokenizer: Any, chat: Chat, prompt: str, source: str) -> Method:
    """Return the method with the template that the tokenizer's chat template writes for a pair.

    The pair is given as messages of the roles `query` and `document`, a prompt as the system's.

    Raises:
        UnsupportedError: the chat template loses a part of the pair, or changes it.
    """
    written = _written(tokenizer, chat, prompt, _MARKS, source)
    if any(written.count(mark) != 1 for mark in _MARKS):
        raise UnsupportedError(
            f"the chat template of {source!r} does not write a query and a document once each, "
            "given messages of these roles; " + _ADVICE
        )
    if any(slot in written for slot in ("{query}", "{text}", "{instruction}", "{?instruction}")):
        raise UnsupportedError(f"the chat template of {source!r} writes slots in braces; {_ADVICE}")
    template = written.replace(_MARKS[0], "{query}").replace(_MARKS[1], "{text}")
    changes = {"template": template, "special_tokens": "none", "strip": False}
    templated = Method.model_validate({**method.model_dump(), **changes})
    padded = (" Ab  c\n", " D\ne ")
    rendered = _written(tokenizer, chat, prompt, padded, source)
    for strips in (False, True):
        query, document = (text.strip() if strips else text for text in padded)
        if written.replace(_MARKS[0], query).replace(_MARKS[1], document) == rendered:
            return templated.model_copy(update={"strip": strips})
    raise UnsupportedError(
        f"the chat template of {source!r} changes the texts of a pair; {_ADVICE}"
    )


_ADVICE = "give method= with a template that has {query} and {text}"


def _written(tokenizer: Any, chat: Chat, prompt: str, pair: tuple[str, str], source: str) -> str:
    structured = chat.structured
    if structured is None:
        structured = any(part in str(tokenizer.chat_template) for part in _PARTS)
    turns = [("query", pair[0]), ("document", pair[1])]
    turns = [("system", prompt), *turns] if prompt else turns
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in turns
    ]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **chat.options))
    except Exception as error:  # a template raises whatever it likes
        raise UnsupportedError(
            f"the chat template of {source!r} cannot write a pair: {str(error)[:200]}; {_ADVICE}"
        ) from error
