"""Which texts are no use: refusals, copies, leaks, wrong lengths and languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedlm.data.languages import in_language
from embedlm.data.words import word_count, words_of
from embedlm.evaluation.contamination import HeldOut
from embedlm.schema.pipeline import Check
from embedlm.synthesis.asking import Outcome, shared_prompts
from embedlm.synthesis.items import Item, fill

__all__ = ["check_item"]

_COPIED = 0.8
"""A text of which so large a share of word runs stands in another is a copy of it."""
_RUN = 5
"""Words of a run that tells a copy; a shorter text is compared whole."""
_LEAST_WORDS = 4
"""Texts of fewer words are copies only of a whole text."""


def check_item(step: Check, item: Item, held_out: HeldOut) -> Outcome:
    """Return the item, or the first reason against it."""
    for name in step.fields:
        value = item[name]
        for text in value if isinstance(value, list) else [value]:
            reason = next(_reasons(step, str(text), item, held_out), None)
            if reason is not None:
                return Outcome(aside=[(f"{step.name}: {name}: {reason}", item)])
    return Outcome([item])


def _reasons(step: Check, text: str, item: Item, held_out: HeldOut) -> Iterator[str]:
    if not text.strip():
        yield "empty"
    if step.refusals and text.strip().lower().replace("’", "'").startswith(
        tuple(shared_prompts()["refusals"])
    ):
        yield "a refusal"
    words = words_of(text)
    count = word_count(text)
    if step.words is not None and not step.words[0] <= count <= step.words[1]:
        yield f"{count} words, not {step.words[0]} to {step.words[1]}"
    for name in step.copies_of:
        if _copied(words, str(item[name])):
            yield f"a copy of {name}"
    if step.held_out and held_out.holds(text):
        yield "a leak: the held-out texts hold its words"
    if step.language is not None:
        wanted = fill(step.language, item)
        found = in_language(text, wanted)
        if found is not None:
            yield f"the language is {found}, not {wanted}"


def _copied(words: Sequence[str], other: str) -> bool:
    """Tell whether most of the words stand in another text in their order."""
    there = words_of(other)
    n = min(_RUN, len(words))
    if len(words) < _LEAST_WORDS:
        return bool(words) and list(words) == there
    runs = {tuple(there[i : i + n]) for i in range(len(there) - n + 1)}
    own = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return sum(run in runs for run in own) >= _COPIED * len(own)
