"""Which demonstration to show: each candidate is scored on a dev set, and the best is kept.

The in-context form of PromptEOL (Jiang et al., arXiv 2307.16645) gains from one demonstration, and
which one differs from model to model. Choose by a dev set, never by a test set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from embedlm.errors import InputError, JobError

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["ScoredDemonstration", "default_candidates", "search_demonstrations"]


@dataclass(frozen=True, slots=True)
class ScoredDemonstration:
    """A demonstration and its Spearman correlation on the dev set; an empty one is none at all."""

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
        progress: told how many candidates are finished.

    Raises:
        InputError: a recipe without demonstrations, or fewer than two dev pairs.
        JobError: a log of another search.
    """
    from embedlm.evaluation.metrics import spearman

    if model.recipe.prompt.demonstration is None:
        raise InputError(
            f"recipe {model.recipe.name!r} takes no demonstrations; use prompteol-icl, or give the "
            "recipe a prompt.demonstration"
        )
    if len(dev) < 2:
        raise InputError(f"the dev set has {len(dev)} pairs; give at least 2")
    pool = list(default_candidates() if candidates is None else candidates)[:limit]
    texts = [text for first, second, _ in dev for text in (first, second)]
    gold = [score for *_, score in dev]
    identity = {"model": model.name, "recipe": model.recipe.name, "pairs": len(dev)}
    known = _read_log(log, identity)
    for shot in [{"query": "", "response": ""}, *pool]:
        key = (str(shot.get("query", "")), str(shot.get("response", "")))
        if key not in known:
            shown = [dict(shot)] if any(key) else []
            vectors = model.encode(texts, demonstrations=shown, heads=["dense"])
            scores = model.similarity_pairwise(vectors[::2], vectors[1::2])
            known[key] = ScoredDemonstration(*key, spearman(scores, gold))
            _append(log, known[key])
        progress(1)
    wanted = {("", ""), *((str(s.get("query", "")), str(s.get("response", ""))) for s in pool)}
    return sorted((known[key] for key in wanted), key=lambda found: (-found.score, found.query))


def _read_log(
    log: Path | None, identity: dict[str, object]
) -> dict[tuple[str, str], ScoredDemonstration]:
    """Return what a log holds; start a new one where there is none."""
    if log is None:
        return {}
    if not log.is_file():
        log.write_text(json.dumps(identity) + "\n", encoding="utf-8")
        return {}
    lines = log.read_text(encoding="utf-8").splitlines()
    if not lines or json.loads(lines[0]) != identity:
        raise JobError(
            f"{log} is the log of another search ({lines[0] if lines else 'empty'}); give another "
            "file, or remove it to start anew"
        )
    found = {}
    for line in lines[1:]:
        try:
            entry = ScoredDemonstration(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue  # the line that a kill cut off
        found[entry.query, entry.response] = entry
    return found


def _append(log: Path | None, found: ScoredDemonstration) -> None:
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
