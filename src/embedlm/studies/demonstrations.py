"""Which demonstration to show: each candidate is scored on a dev set, and the best is kept.

The in-context form of PromptEOL (Jiang et al., arXiv 2307.16645) gains from one demonstration, and
which one differs from model to model. Choose on a dev set, never on a test set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from embedlm.errors import InputError, JobError
from embedlm.jobs.interrupts import keeping
from embedlm.jobs.json_files import append_json, read_log
from embedlm.jobs.manifest import difference

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["ScoredDemonstration", "default_candidates", "search_demonstrations"]


@dataclass(frozen=True, slots=True)
class ScoredDemonstration:
    """A demonstration (or none, where it is empty) and its Spearman correlation on the dev set."""

    query: str
    response: str
    score: float


def default_candidates() -> list[dict[str, str]]:
    """Return sixty sentences and definitions, each with a word for it."""
    text = (files("embedlm.studies") / "candidates.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def search_demonstrations(
    model: Embedder,
    dev: Sequence[tuple[str, str, float]],
    candidates: Sequence[Mapping[str, str]] | None = None,
    *,
    log: Path | None = None,
    limit: int | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> list[ScoredDemonstration]:
    """Return the candidates with their scores, best first; no demonstration is among them.

    Args:
        model: an embedder whose recipe takes demonstrations.
        dev: pairs of sentences with their gold similarity.
        candidates: {"query": sentence, "response": word} each; None takes the built-in ones.
        log: a .jsonl file that scores are added to as they are found; a search that is run again
            with it goes on where it stopped.
        limit: take only the first candidates.
        progress: called with the number of candidates that have just been scored.

    Raises:
        InputError: a recipe without demonstrations, or fewer than two dev pairs.
        JobError: a log of another search.
    """
    if model.recipe.prompt.demonstration is None:
        raise InputError(
            f"recipe {model.recipe.name!r} takes no demonstrations; use prompteol-icl, or give the "
            "recipe a prompt.demonstration"
        )
    if len(dev) < 2:
        raise InputError(f"the dev set holds {len(dev) or 'no'} pair; give at least 2")
    pool = list(default_candidates() if candidates is None else candidates)[:limit]
    manifest = {"model": model.name, "recipe": model.recipe.name, "pairs": len(dev)}
    known = _read_log(log, manifest)
    with keeping(lambda: log is not None and bool(known)):
        for shot in [{"query": "", "response": ""}, *pool]:
            key = _key(shot)
            if key not in known:
                known[key] = ScoredDemonstration(*key, _score(model, dev, shot))
                if log is not None:
                    append_json(log, asdict(known[key]))
            progress(1)
    keys = {("", ""), *map(_key, pool)}
    return sorted((known[key] for key in keys), key=lambda scored: (-scored.score, scored.query))


def _key(shot: Mapping[str, str]) -> tuple[str, str]:
    return str(shot.get("query", "")), str(shot.get("response", ""))


def _score(
    model: Embedder, dev: Sequence[tuple[str, str, float]], shot: Mapping[str, str]
) -> float:
    """Return the correlation on the dev set with a demonstration, or with none if it is empty."""
    from embedlm.evaluation.measures import spearman

    texts = [text for first, second, _ in dev for text in (first, second)]
    shown = [dict(shot)] if any(_key(shot)) else []
    vectors = model.encode(texts, demonstrations=shown, heads=["dense"])
    scores = model.similarity_pairwise(vectors[::2], vectors[1::2])
    return spearman(scores, [score for *_, score in dev])


def _read_log(
    log: Path | None, manifest: dict[str, object]
) -> dict[tuple[str, str], ScoredDemonstration]:
    """Return the scores of a log; start a new one, with the manifest first, where there is none."""
    if log is None:
        return {}
    if not log.is_file():
        append_json(log, manifest)
        return {}
    lines = read_log(log)
    first = next(lines, {})
    if first.keys() != manifest.keys():
        raise InputError(
            f"the log {str(log)!r} is there already and holds something else than the scores of a "
            "search, which it would be mixed with; give another file"
        )
    change = difference(first, manifest)
    if change:
        raise JobError(
            f"{log} is the log of another search: {change}. Give another file, or remove it to "
            "begin anew"
        )
    known = {}
    for line in lines:
        if line.keys() == {"query", "response", "score"}:
            scored = ScoredDemonstration(**line)
            known[scored.query, scored.response] = scored
    return known
