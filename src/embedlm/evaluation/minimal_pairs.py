"""Minimal pairs: sentences that differ in the group that they speak of, and which one is closer.

CrowS-Pairs (Nangia et al., EMNLP 2020) and WinoBias (Zhao et al., NAACL 2018) compare likelihoods
and resolved pronouns. A vector has neither; these tasks compare similarities with a text that
names no group, and so are like these tests, not the same.

    preference = share of pairs with cos(anchor, more) > cos(anchor, less), ties 1/2; ideal 1/2
    shift = mean of cos(anchor, more) - cos(anchor, less); ideal 0
    distance = mean of 1 - cos(more, less)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from embedlm.data import read_rows
from embedlm.errors import RecordError
from embedlm.evaluation.probes import Coreference, MinimalPairs
from embedlm.evaluation.readers import text_of
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED, holm, sign_flip
from embedlm.evaluation.subject import Scored, Subject, drawn
from embedlm.readout.similarity import cosine

__all__ = ["coreference", "minimal_pairs", "resolved", "shared_words"]

Paths = Mapping[str, Path]
_MENTION = re.compile(r"\[([^\]]*)\]")
_POSSESSIVE = frozenset({"his", "hers"})
_PRONOUNS = frozenset(
    {"he", "him", "his", "himself", "she", "her", "hers", "herself", "they", "them", "their"}
)


@dataclass(frozen=True, slots=True)
class _Pair:
    more: str
    less: str
    anchor: str
    group: str


def minimal_pairs(subject: Subject, task: MinimalPairs, paths: Paths) -> Scored:
    """Score which sentence of a pair is closer to what both share, or to the pair's anchor."""
    pairs = []
    for where, record in read_rows(paths["pairs"]):
        more = text_of(record, where, task.fields.more)
        less = text_of(record, where, task.fields.less)
        name = task.fields.anchor
        anchor = shared_words(more, less) if name is None else text_of(record, where, name)
        group = "" if task.fields.group is None else text_of(record, where, task.fields.group)
        pairs.append(_Pair(more, less, anchor, group))
    return _scored(subject, task, pairs, paths["pairs"])


def coreference(subject: Subject, task: Coreference, paths: Paths) -> Scored:
    """Score which pronoun, the stereotyped or the other, is closer to the one whom it stands for.

    The anchor is the sentence with the pronoun written out ("because the developer did not ...").
    """
    pairs = list(_coreferent(paths["sentences"], task))
    return _scored(subject, task, pairs, paths["sentences"])


def _coreferent(path: Path, task: Coreference) -> Iterator[_Pair]:
    """Yield pairs: the i-th sentence of each type with a stereotyped pronoun and with another."""
    rows: dict[str, dict[str, list[str]]] = {}
    for where, record in read_rows(path):
        if task.split and text_of(record, where, task.fields.split) != task.split:
            continue
        kind = text_of(record, where, task.fields.kind)
        if kind not in ("pro", "anti"):
            raise RecordError(f"{where}: {task.fields.kind!r} is {kind!r}; allowed are pro, anti")
        sides = rows.setdefault(text_of(record, where, task.fields.type), {"pro": [], "anti": []})
        sides[kind].append(text_of(record, where, task.fields.text))
    for group, sides in rows.items():
        if len(sides["pro"]) != len(sides["anti"]):
            raise RecordError(
                f"{path}: type {group} has {len(sides['pro'])} sentences of the kind pro and "
                f"{len(sides['anti'])} of anti; each needs its counterpart, in the same order"
            )
        for pro, anti in zip(sides["pro"], sides["anti"], strict=True):
            anchor = resolved(pro, anti)
            if anchor is not None:  # else the two differ in more than the pronoun
                yield _Pair(_bare(pro), _bare(anti), anchor, f"type{group}")


def resolved(pro: str, anti: str) -> str | None:
    """Return a sentence with its bracketed pronouns written out.

    Args:
        pro: with [brackets] around an entity and the pronouns that stand for it.
        anti: the same with other pronouns, which tell the possessive "her" from the other one.

    Returns:
        None where the two differ in more than bracketed pronouns, or name no entity.
    """
    mine, other = _MENTION.findall(pro), _MENTION.findall(anti)
    if _MENTION.sub("[]", pro) != _MENTION.sub("[]", anti) or len(mine) != len(other):
        return None
    entities = [text for text in mine if text.casefold() not in _PRONOUNS]
    if len(entities) != 1:
        return None
    entity = entities[0][:1].lower() + entities[0][1:]
    written = []
    for one, two in zip(mine, other, strict=True):
        possessive = bool(_POSSESSIVE & {one.casefold(), two.casefold()})
        plain = one.casefold() not in _PRONOUNS
        written.append(one if plain else f"{entity}'s" if possessive else entity)
    between = [*_MENTION.split(pro)[::2]]
    return "".join(part for both in zip(between, [*written, ""], strict=True) for part in both)


def _bare(sentence: str) -> str:
    return _MENTION.sub(r"\1", sentence)


def shared_words(a: str, b: str) -> str:
    """Return the words of two sentences that both have, in order."""
    first, second = a.split(), b.split()
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    return " ".join(word for block in blocks for word in first[block.a : block.a + block.size])


def _scored(
    subject: Subject, task: MinimalPairs | Coreference, found: Sequence[_Pair], path: Path
) -> Scored:
    if len(found) < 2:
        raise RecordError(f"{path}: {len(found)} pairs can be scored; two at least are needed")
    pairs = [found[i] for i in drawn(len(found), task, SEED)]
    texts = [text for pair in pairs for text in (pair.more, pair.less, pair.anchor)]
    vectors = subject.fitted(texts).floats(texts, task)
    more, less, anchor = vectors[::3], vectors[1::3], vectors[2::3]
    to_more, to_less = (cosine(anchor, side, pairwise=True) for side in (more, less))
    shift = to_more.astype(float) - to_less
    prefers = np.where(np.abs(shift) < 1e-7, 0.5, (shift > 0).astype(float))
    groups = np.array([pair.group for pair in pairs])
    metrics = {
        "preference": float(prefers.mean()),
        "shift": float(shift.mean()),
        "absolute_shift": float(np.abs(shift).mean()),
        "distance": float(1 - cosine(more, less, pairwise=True).mean()),
    }
    names = sorted({group for group in groups.tolist() if group})
    for name in names:
        metrics[f"preference_{name}"] = float(prefers[groups == name].mean())
    p = [sign_flip(prefers[groups == name] - 0.5) for name in names]
    notes = {
        "groups": {
            name: {"n": int((groups == name).sum()), "p": one, "p_holm": corrected}
            for name, one, corrected in zip(names, p, holm(p), strict=True)
        },
        "p": sign_flip(prefers - 0.5),
    }
    columns = {"value": prefers if task.metric == "preference" else shift, "shift": shift}
    ids = [str(number) for number in range(len(pairs))]
    sample = Sample.of("mean", "pair", ids, [[pair.more, pair.less] for pair in pairs], columns)
    return Scored(metrics, sample, notes)
