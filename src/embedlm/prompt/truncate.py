"""Shortening rendered prompts, by the rules that `prompt.truncate` names.

text: the text gives way until all fits; turn: the same, and demonstrations do not count; slot: the
limit counts each copy of the text alone; pieces: it counts every piece alone; end: the rendered end
is cut off. A token that has characters of the text and of the template is the template's: it stays.

With `prompt.truncation_side: left` the start of the filled prompt goes, the template's part too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError
from embedlm.prompt.segments import SEGMENT_ID, Segments

__all__ = ["Ids", "cut_ids", "cut_parts", "cut_start"]

Ids = list[int]
_CUTTABLE = (SEGMENT_ID["text"], SEGMENT_ID["repeat"])
_SHOTS = SEGMENT_ID["demonstrations"]


def cut_ids(
    ids: Ids, marks: Segments, limit: int, rule: str, stays: npt.NDArray[np.bool_]
) -> tuple[Ids, Segments, npt.NDArray[np.bool_]]:
    """Return the ids and segments of a joined prompt within the limit, and which tokens were kept.

    Args:
        ids: n token ids.
        marks: the segment of each token.
        limit: in tokens; what it counts depends on the rule.
        rule: the recipe's `prompt.truncate`.
        stays: tokens that must stay, because the template has a part in them.
    """
    if rule == "end":
        kept = np.arange(len(ids)) < limit
        return ids[:limit], marks[:limit], kept
    cuttable = [(marks == kind) & ~stays for kind in _CUTTABLE]
    counts = [int(np.sum(tokens)) for tokens in cuttable]
    if rule == "turn":
        limit += int(np.sum(marks == _SHOTS))
    if rule == "slot":
        room = limit
    elif len(ids) <= limit:
        room = len(ids)
    else:
        copies = sum(1 for count in counts if count)
        room = _share(limit, len(ids) - sum(counts), copies)
    kept = np.ones(len(ids), dtype=bool)
    for tokens in cuttable:
        kept[np.flatnonzero(tokens)[room:]] = False
    return [i for i, ok in zip(ids, kept.tolist(), strict=True) if ok], marks[kept], kept


def cut_start(ids: Ids, marks: Segments, limit: int) -> tuple[Ids, Segments]:
    """Return the ids and segments of a joined prompt's end, and the special tokens around it.

    As a tokenizer cuts on the left: before it adds its special tokens, and blind to the template.
    """
    body = np.flatnonzero((marks != SEGMENT_ID["special"]) & (marks != SEGMENT_ID["eos"]))
    room = _share(limit, len(ids) - len(body), 1)
    kept = np.ones(len(ids), dtype=bool)
    kept[body[: max(0, len(body) - room)]] = False
    return [i for i, ok in zip(ids, kept.tolist(), strict=True) if ok], marks[kept]


def cut_parts(
    parts: Sequence[Ids], marks: Sequence[Segments], limit: int, rule: str
) -> tuple[list[Ids], list[Segments], bool]:
    """Return the pieces' ids and marks within the limit, and whether they were cut."""
    total = sum(map(len, parts))
    if rule == "end":
        ids = [token for part in parts for token in part][:limit]
        return [ids], [np.concatenate(marks)[:limit]], total > limit
    texts = [i for i, one in enumerate(marks) if len(one) and one[0] in _CUTTABLE]
    if rule == "turn":
        limit += sum(int(np.sum(one == _SHOTS)) for one in marks)
    if rule in ("text", "turn"):
        if total <= limit:
            return list(parts), list(marks), False
        prompt = total - sum(len(parts[i]) for i in texts)
        limits = dict.fromkeys(texts, _share(limit, prompt, len(texts)))
    else:
        limits = dict.fromkeys(texts if rule == "slot" else range(len(parts)), limit)
    short = [part[: limits.get(i)] for i, part in enumerate(parts)]
    kept = [one[: limits.get(i)] for i, one in enumerate(marks)]
    return short, kept, sum(map(len, short)) < total


def _share(limit: int, prompt: int, copies: int) -> int:
    """Return how many tokens each copy of the text may have beside the prompt's own."""
    if limit - prompt < max(copies, 1):
        raise InputError(
            f"the prompt alone takes {prompt} tokens, which leaves no room for the text within "
            f"max_length {limit}; give a larger max_length or a shorter prompt"
        )
    return (limit - prompt) // max(copies, 1)
