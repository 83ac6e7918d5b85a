"""Which tokens of a byte-pair vocabulary are kept, and the tokenizer that has those alone.

A token that is merged from two others is kept only with both, so that every token that is kept can
still be made; bytes and special tokens always stay, so that every text can be written and read.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from embedlm.errors import InputError, ModelError, UnsupportedError

__all__ = ["check_round_trip", "count_tokens", "cut_state", "kept_ids", "tokenizer_state"]

_BATCH = 4096
_BYTES = 256
ODD = "naïve café – 12,345 µg/mL 東京 🙂\n\tdef f(x): return x  # \x00\x7f"
"""A text of many scripts, which a tokenizer that knows every byte gives back."""


def tokenizer_state(tokenizer: Any) -> dict[str, Any]:
    """Return what tokenizer.json holds, of a tokenizer whose vocabulary can be cut.

    Raises:
        UnsupportedError: it is no byte-pair encoding with tokens for bytes.
    """
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    kind = model.get("type", "BPE")
    if kind != "BPE" or not _bytes(state):
        raise UnsupportedError(
            f"the vocabulary of this {kind} tokenizer cannot be cut; only that of a byte-pair "
            "encoding with tokens for bytes can (GPT-2's and Llama's kinds). Cut the layers alone"
        )
    return state


def _bytes(state: Mapping[str, Any]) -> list[int]:
    """Return the ids of the tokens that stand for single bytes; some vocabularies lack a few."""
    vocabulary: dict[str, int] = state["model"]["vocab"]
    if state["model"].get("byte_fallback"):
        named = (f"<0x{byte:02X}>" for byte in range(_BYTES))
        return [vocabulary[name] for name in named if name in vocabulary]
    steps = json.dumps([state.get("pre_tokenizer"), state.get("decoder")])
    if "ByteLevel" not in steps:
        return []
    return [vocabulary[sign] for sign in _byte_signs() if sign in vocabulary]


def _byte_signs() -> list[str]:
    """Return the character by which a byte-level vocabulary writes each byte (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(_BYTES + n) for n in range(len(others))]


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> Counter[int]:
    """Return how often each id stands in texts."""
    counts: Counter[int] = Counter()
    source, core = iter(texts), tokenizer.backend_tokenizer
    while batch := list(itertools.islice(source, _BATCH)):
        for encoding in core.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def kept_ids(state: Mapping[str, Any], counts: Mapping[int, int], size: int) -> list[int]:
    """Return the ids that are kept, ascending: bytes, special tokens, and those used most.

    A token counts for those that it is merged from too, so that these never rank below it; in a tie
    the earlier merge goes first.

    Args:
        state: of `tokenizer_state`.
        counts: how often each id is used.
        size: how many are kept.

    Raises:
        InputError: fewer than must stay, or not fewer than there are.
    """
    vocabulary: dict[str, int] = state["model"]["vocab"]
    added = [int(token["id"]) for token in state["added_tokens"]]
    everything = {*vocabulary.values(), *added}
    unknown = state["model"].get("unk_token")
    always = {*_bytes(state), *added, *([vocabulary[unknown]] if unknown in vocabulary else [])}
    if not len(always) <= size < len(everything):
        raise InputError(
            f"a vocabulary of {size} tokens was asked for; this model has {len(everything)}, of "
            f"which {len(always)} must stay (bytes and special tokens): give a number from "
            f"{len(always)} to {len(everything) - 1}"
        )
    total = {i: counts.get(i, 0) for i in everything}
    made = _made(state)
    for whole in sorted(made, key=lambda i: -made[i][0]):
        for part in set(made[whole][1:]):
            total[part] += total[whole]
    rest = [i for i in everything if i not in always]
    first = (-1, 0, 0)
    rest.sort(key=lambda i: (-total[i], made.get(i, first)[0], i))
    return sorted([*always, *_closed(rest, always, made, size - len(always))])


def _closed(
    ranked: Sequence[int], always: set[int], made: Mapping[int, tuple[int, int, int]], room: int
) -> list[int]:
    """Return the best tokens whose parts are kept too."""
    kept: dict[int, None] = {}
    for token in ranked:
        if len(kept) == room:
            break
        parts = made[token][1:] if token in made else ()
        if all(part in always or part in kept for part in parts):
            kept[token] = None
    return list(kept)


def _made(state: Mapping[str, Any]) -> dict[int, tuple[int, int, int]]:
    """Return, of each token that is merged, the merge's rank and the two tokens' ids.

    A SentencePiece vocabulary lists every pair that spells a token. The one that is merged is found
    by merging the token's own characters.
    """
    vocabulary: dict[str, int] = state["model"]["vocab"]
    ranks = {pair: rank for rank, pair in enumerate(_merges(state))}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for pair in ranks:
        pairs.setdefault("".join(pair), []).append(pair)
    made = {}
    for token, listed in pairs.items():
        if token in vocabulary:
            a, b = listed[0] if len(listed) == 1 else _last_merge(token, ranks) or listed[0]
            made[vocabulary[token]] = (ranks[a, b], vocabulary[a], vocabulary[b])
    return made


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """Return the two tokens that a token's characters are merged to at last; None: to others."""
    parts = list(token)
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return None
        _, i = min(found)
        if len(parts) == 2:
            return parts[0], parts[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _merges(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that are merged; older files write a pair as one string."""
    pairs = (
        pair.split(" ") if isinstance(pair, str) else pair for pair in state["model"]["merges"]
    )
    return [(str(a), str(b)) for a, b in pairs]


def cut_state(state: Mapping[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """Return what tokenizer.json holds with the kept ids alone, numbered anew from 0."""
    new = {old: number for number, old in enumerate(keep)}
    model = state["model"]
    vocabulary = {token: new[i] for token, i in model["vocab"].items() if i in new}
    merges = [[a, b] for a, b in _merges(state) if {a, b, a + b} <= vocabulary.keys()]
    added = [{**token, "id": new[token["id"]]} for token in state["added_tokens"]]
    padding = state.get("padding")
    if padding is not None:
        padding = {**padding, "pad_id": new[padding["pad_id"]]}
    return {
        **state,
        "added_tokens": added,
        "padding": padding,
        "post_processor": _renumbered(state.get("post_processor"), new),
        "model": {**model, "vocab": vocabulary, "merges": merges},
    }


def _renumbered(step: Any, new: Mapping[int, int]) -> Any:
    """Return a post-processor whose special tokens have their new ids."""
    if not isinstance(step, dict):
        return step
    changed = dict(step)
    for name in ("cls", "sep"):
        if name in changed:
            token, old = changed[name]
            changed[name] = [token, new[old]]
    if "processors" in changed:
        changed["processors"] = [_renumbered(inner, new) for inner in changed["processors"]]
    if isinstance(changed.get("special_tokens"), dict):
        changed["special_tokens"] = {
            name: {**token, "ids": [new[old] for old in token["ids"]]}
            for name, token in changed["special_tokens"].items()
        }
    return changed


def check_round_trip(before: Any, after: Any, texts: Iterable[str]) -> float:
    """Return how many times as many tokens texts have under a cut tokenizer.

    Raises:
        ModelError: a text that it gives back otherwise than the tokenizer it was cut from.
    """
    old_tokens = new_tokens = 0
    for text in (ODD, *texts):
        old, new = (one.encode(text, add_special_tokens=False) for one in (before, after))
        back = [
            one.decode(ids, clean_up_tokenization_spaces=False)
            for one, ids in ((before, old), (after, new))
        ]
        if back[0] != back[1]:
            raise ModelError(
                f"the cut tokenizer gives {back[1][:60]!r} back for {back[0][:60]!r}; its "
                "vocabulary cannot be cut. Cut the layers alone"
            )
        old_tokens, new_tokens = old_tokens + len(old), new_tokens + len(new)
    return new_tokens / old_tokens
