"""LARMOR: which embedder suits a corpus that has no labels (Khramtsova et al., arXiv 2402.04853).

A language model writes queries for a sample of the passages. Every candidate ranks the passages
for them; the rankings are fused by reciprocal ranks. Of the best fused passages, those that the
language model calls highly relevant are added to the passage that the query was written for. By
these pseudo-judgements nDCG@10 ranks the candidates. The language model also puts the best fused
passages in order (setwise heap sort, Zhuang et al., arXiv 2310.09497): a reference list, by which
rank-biased overlap ranks them. The result fuses both.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.errors import InputError
from embedlm.evaluation.metrics import ndcg
from embedlm.generation import (
    Answer,
    Cache,
    Conversation,
    Generator,
    Question,
    Sampling,
    Spent,
    converse,
    resolve_generator,
)
from embedlm.jobs import disk_errors
from embedlm.jobs.json_files import write_json
from embedlm.jobs.names import check_file
from embedlm.mining.corpus import Corpus, Rows, prepare_corpus
from embedlm.mining.record_job import work_folder
from embedlm.mining.settings import whole
from embedlm.schema.yaml_files import read_mapping
from embedlm.search.fusion import fuse
from embedlm.synthesis.items import fill
from embedlm.synthesis.job import synthesize
from embedlm.synthesis.ranking import Ranked, Ranker

__all__ = ["heap_sorted", "larmor", "rank_biased_overlap"]

TOP = 10
"""Ranks that candidates are compared on."""
PERSISTENCE = 0.9
"""p of rank-biased overlap."""
_CHILDREN = 2
_DEPTH = 100
"""Passages of a candidate's ranking that are fused."""
_QUERIES = 64


@dataclass(frozen=True, slots=True)
class _Query:
    text: str
    seed: str
    """Id of the passage it was written for."""


def rank_biased_overlap(
    a: Sequence[str], b: Sequence[str], p: float = PERSISTENCE, depth: int = TOP
) -> float:
    """Return sum_d p^(d-1) |a_1..d and b_1..d| / d, divided by sum_d p^(d-1), d = 1..depth.

    Rank-biased overlap (Webber et al., TOIS 2010), cut off at a depth and made 1 for equal lists.
    """
    shares = [p ** (d - 1) for d in range(1, depth + 1)]
    agree = [len(set(a[:d]) & set(b[:d])) / d for d in range(1, depth + 1)]
    return sum(share * value for share, value in zip(shares, agree, strict=True)) / sum(shares)


def larmor(
    models: Sequence[Any],
    passages: Rows,
    *,
    llm: Any,
    count: int = 100,
    queries: int = 10,
    depth: int = 10,
    seed: int = 0,
    output: str | Path | None = None,
    cache: str | Path | None = None,
    show_progress: bool | None = None,
) -> dict[str, Any]:
    """Rank embedders for a corpus without labels, best first.

    Args:
        models: folders, hub ids, `Embedder`s or "bm25"; at least two.
        passages: the corpus, a file or values.
        llm: writes and judges; see `synthesize`.
        count: passages that queries are written for.
        queries: of each of them.
        depth: best fused passages that the language model judges and puts in order.
        seed: of the sample and the queries.
        output: a .json file that takes the result, too.
        cache: file of the cache of generated texts; None: the default one.
        show_progress: None shows a bar for long jobs on a terminal.

    Returns:
        `{"ranking": [{"model", "score", "ndcg@10", "rbo"}, ...], "queries", "judged",
        "relevant", "unread"}`; score is the fused one.

    Raises:
        InputError: fewer than two models, or a corpus without passages.
        GenerationError: the language model cannot be used.
    """
    if len(models) < 2:
        raise InputError(f"{len(models)} model was given; give at least two to compare")
    for name, value, least in (("count", count, 1), ("depth", depth, 2), ("seed", seed, 0)):
        whole(name, value, least)
    check_file(None if output is None else str(output), [".json"], [passages])
    writer = resolve_generator(llm)
    names = [_name(model) for model in models]
    if len(set(names)) < len(names):
        raise InputError("a model is given twice; give each once")
    changes = {"steps.query.samples": whole("queries", queries)}
    with _folder(output) as folder:
        made = synthesize(
            "larmor",
            passages,
            llm=writer,
            count=count,
            changes=changes,
            seed=seed,
            cache=cache,
            output=folder / "queries.jsonl",
            show_progress=show_progress,
        )
        asked = list(_queries(folder / "queries.jsonl"))
        if not asked:
            raise InputError(_nothing_written(made.report["steps"]))
        corpus = prepare_corpus(passages, folder, [])
        runs = [_run(model, corpus, asked, folder, show_progress) for model in models]
        fused = [_fused([run[i] for run in runs], depth) for i in range(len(asked))]
        with closing(Cache(None if cache is None else Path(cache))) as store:
            judged = list(_judged(writer, store, asked, fused))
            ordered = list(_ordered(writer, store, asked, fused))
    result = _result(names, asked, runs, judged, ordered)
    if output is not None:
        with disk_errors(Path(output), "Nothing was written; make room, or name another output"):
            write_json(Path(output), result, indent=1)
    return result


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    """Yield a folder for queries and vectors; beside an output it outlives a kill."""
    if output is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        with work_folder(Path(output), None) as folder:
            yield folder


def _nothing_written(steps: Sequence[dict[str, Any]]) -> str:
    """Return why all queries were set aside, with how often, and what to do."""
    found = [(why, one["count"]) for step in steps for why, one in step["set_aside"].items()]
    told = "; ".join(f"{why}: {count}" for why, count in found) or "the answers were empty"
    return (
        f"no query was written that can be used ({told}); see what the language model answers, or "
        "name another (llm)"
    )


def _name(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else str(model.name)


def _queries(path: Path) -> Iterator[_Query]:
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            row = json.loads(line)
            yield _Query(row["query"], str(row["positive_ids"][0]))


def _run(
    model: Any,
    corpus: Corpus,
    asked: Sequence[_Query],
    folder: Path,
    show_progress: bool | None,
) -> list[list[Ranked]]:
    """Return a candidate's ranking for each query."""
    from embedlm.loader import load

    named = isinstance(model, str | Path) and model != "bm25"
    embedder = load(model) if named else model
    ranker = Ranker(embedder, corpus)
    ranker.prepare(folder, show_progress)
    found: list[list[Ranked]] = []
    for at in range(0, len(asked), _QUERIES):
        found += ranker.best([one.text for one in asked[at : at + _QUERIES]], _DEPTH)
    return found


def _fused(runs: Sequence[Sequence[Ranked]], depth: int) -> list[Ranked]:
    """Return the best passages of all candidates together."""
    by_id = {one.id: one for run in runs for one in run}
    scores = fuse([{one.id: -float(i) for i, one in enumerate(run)} for run in runs], "rrf")
    return [by_id[id] for id in sorted(scores, key=lambda id: (-scores[id], id))[:depth]]


# -- the language model ---------------------------------------------------------------------------


def _prompt(name: str, **values: Any) -> list[dict[str, str]]:
    prompts = read_mapping(Path(__file__).with_name("larmor.yaml"), "prompts")
    return [{"role": "user", "content": fill(str(prompts[name]), values).strip()}]


_LABELS = ("Not Relevant", "Somewhat Relevant", "Highly Relevant")


def _judged(
    writer: Generator, store: Cache, asked: Sequence[_Query], fused: Sequence[Sequence[Ranked]]
) -> Iterator[dict[str, bool | None]]:
    """Yield for each query which passages are highly relevant; None: no such answer."""

    def conversation(query: _Query, ranked: Sequence[Ranked]) -> Conversation[Any]:
        found: dict[str, bool | None] = {}
        for one in ranked:
            chat = _prompt("judge", query=query.text, passage=one.text)
            answer = yield Question(chat, Sampling(0.0, 1.0, 8), labels=_LABELS)
            found[one.id] = _highly(answer)
        return found

    conversations = (conversation(*pair) for pair in zip(asked, fused, strict=True))
    return converse(writer, conversations, store, Spent())


def _highly(answer: Answer) -> bool | None:
    """Return whether an answer is the best label, by its score or as it is written."""
    if answer.scores is not None:
        return int(np.argmax(answer.scores)) == len(_LABELS) - 1
    said = answer.text.strip().strip(".").casefold()
    known = said in [label.casefold() for label in _LABELS]
    return said == _LABELS[-1].casefold() if known else None


def _ordered(
    writer: Generator, store: Cache, asked: Sequence[_Query], fused: Sequence[Sequence[Ranked]]
) -> Iterator[list[str]]:
    """Yield for each query the ids of the passages in the language model's order."""

    def conversation(query: _Query, ranked: Sequence[Ranked]) -> Conversation[Any]:
        order = yield from heap_sorted(query.text, [one.text for one in ranked])
        return [ranked[i].id for i in order]

    conversations = (conversation(*pair) for pair in zip(asked, fused, strict=True))
    return converse(writer, conversations, store, Spent())


def heap_sorted(query: str, passages: Sequence[str]) -> Conversation[list[int]]:
    """Return the places of passages, best first, by asking which of three is the best.

    An answer that is none of the letters leaves the order as it was.
    """
    heap = list(range(len(passages)))

    def sift(at: int, size: int) -> Conversation[None]:
        while True:
            family = [at, *range(_CHILDREN * at + 1, min(_CHILDREN * at + _CHILDREN + 1, size))]
            if len(family) == 1:
                return
            letters = tuple("ABC"[: len(family)])
            shown = "\n\n".join(
                f"{letter}: {passages[heap[i]]}" for letter, i in zip(letters, family, strict=True)
            )
            chat = _prompt("setwise", query=query, passages=shown, letters=", ".join(letters))
            answer = yield Question(chat, Sampling(0.0, 1.0, 2), labels=letters)
            scores = answer.scores or (1.0, *([0.0] * (len(family) - 1)))
            best = family[int(np.argmax(scores))]
            if best == at:
                return
            heap[at], heap[best] = heap[best], heap[at]
            at = best

    for start in reversed(range(len(heap) // _CHILDREN + 1)):
        yield from sift(start, len(heap))
    order: list[int] = []
    for size in reversed(range(len(heap))):
        order.append(heap[0])
        heap[0] = heap[size]
        yield from sift(0, size)
    return order


# -- the result -----------------------------------------------------------------------------------


def _result(
    names: Sequence[str],
    asked: Sequence[_Query],
    runs: Sequence[Sequence[Sequence[Ranked]]],
    judged: Sequence[dict[str, bool | None]],
    ordered: Sequence[list[str]],
) -> dict[str, Any]:
    gains = [
        {query.seed: 1.0, **{id: 1.0 for id, relevant in found.items() if relevant}}
        for query, found in zip(asked, judged, strict=True)
    ]
    quality, overlap = {}, {}
    for name, run in zip(names, runs, strict=True):
        lists = [[one.id for one in ranked] for ranked in run]
        quality[name] = float(np.mean([ndcg(ids, g) for ids, g in zip(lists, gains, strict=True)]))
        overlap[name] = float(
            np.mean([rank_biased_overlap(ids, o) for ids, o in zip(lists, ordered, strict=True)])
        )
    scores = fuse([quality, overlap], "rrf")
    ranking = sorted(names, key=lambda name: (-scores[name], -quality[name], name))
    verdicts = [value for found in judged for value in found.values()]
    return {
        "ranking": [
            {
                "model": name,
                "score": scores[name],
                "ndcg@10": quality[name],
                "rbo": overlap[name],
            }
            for name in ranking
        ],
        "queries": len(asked),
        "judged": len(verdicts),
        "relevant": verdicts.count(True),
        "unread": verdicts.count(None),
    }
