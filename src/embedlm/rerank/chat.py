"""A tokenizer's chat template as the template of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedlm.errors import TemplateError, UnsupportedError
from embedlm.prompt.chat import closed_turns, places_in
from embedlm.rerank.cross_encoder import Chat
from embedlm.schema.rerank import Method

__all__ = ["chat_method"]

_MARKS = ("embedlmquerymark", "embedlmdocumentmark")
_ADVICE = "give method= with a template that has {query} and {text}"


def chat_method(method: Method, tokenizer: Any, chat: Chat, prompt: str, source: str) -> Method:
    """Return the method with the template that the tokenizer's chat template writes for a pair.

    The pair is given as messages of the roles `query` and `document`, a prompt as the system's.

    Raises:
        UnsupportedError: the chat template loses a part of the pair, or changes it.
    """

    def write(pair: Sequence[str]) -> str:
        turns = list(zip(("query", "document"), pair, strict=True))
        turns = [("system", prompt), *turns] if prompt else turns
        return closed_turns(turns, tokenizer, structured=chat.structured, options=chat.options)

    try:
        written, strips = places_in(write, _MARKS)
    except TemplateError as error:
        raise UnsupportedError(
            f"the chat template of {source!r}, given a query and a document in messages of these "
            f"roles, {error}; {_ADVICE}"
        ) from error
    if any(slot in written for slot in ("{query}", "{text}", "{instruction}", "{?instruction}")):
        raise UnsupportedError(f"the chat template of {source!r} writes slots in braces; {_ADVICE}")
    template = written.replace(_MARKS[0], "{query}").replace(_MARKS[1], "{text}")
    changes = {"template": template, "special_tokens": "none", "strip": strips}
    return Method.model_validate({**method.model_dump(), **changes})
