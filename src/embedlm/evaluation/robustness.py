"""What changed queries, orders in documents and other instructions do to rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.errors import RecordError
from embedlm.evaluation.collection import (
    Collection,
    collected,
    dense_of,
    losses_told,
    main_head,
    query_sample,
)
from embedlm.evaluation.metrics import best_documents, score_queries
from embedlm.evaluation.pair_tasks import golden_pairs
from embedlm.evaluation.perturbations import negated, perturb, read_synonyms, variants
from embedlm.evaluation.probes import Instructions, Negation, Robustness, WorstCase
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject, drawn
from embedlm.readout.similarity import cosine

__all__ = ["instructions", "negation", "robustness", "worst_case"]

Paths = Mapping[str, Path]
Floats = npt.NDArray[np.float64]


def robustness(subject: Subject, task: Robustness, paths: Paths) -> Scored:
    """Score what queries lose by each kind of change, and how far their vectors move.

    NAME_loss is the mean loss of the ranked metric, NAME_drift the mean of 1 - cos(query, changed
    query) of dense vectors; `mean_loss` is the mean over the kinds.
    """
    collection = collected(subject, task, paths)
    texts = list(collection.queries.values())
    synonyms = read_synonyms(paths["synonyms"], texts)
    asked = collection.encoded(texts)
    clean, plain = collection.scores(asked), dense_of(asked)
    losses: dict[str, Floats] = {}
    metrics: dict[str, float] = {task.ranked: float(clean.mean())}
    changed_share: dict[str, float] = {}
    for name in task.perturbations:
        changed = [perturb(text, name, rate=task.rate, synonyms=synonyms) for text in texts]
        found = collection.encoded(changed)
        losses[name] = clean - collection.scores(found)
        metrics[f"{name}_loss"] = float(losses[name].mean())
        moved = dense_of(found)
        if plain is not None and moved is not None:
            metrics[f"{name}_drift"] = float(1 - cosine(plain, moved, pairwise=True).mean())
        pairs = zip(texts, changed, strict=True)
        changed_share[name] = float(np.mean([a != b for a, b in pairs]))
    value = np.mean(list(losses.values()), axis=0)
    metrics = {"mean_loss": float(value.mean()), **metrics}
    sample = query_sample(collection, value, {"clean": clean, **losses})
    told = losses_told(losses, collection.relevant_ids)
    return Scored(metrics, sample, {"losses": told, "changed": changed_share})


def worst_case(subject: Subject, task: WorstCase, paths: Paths) -> Scored:
    """Score what queries lose by the worst changes of a few words.

    A greedy search: each step tries every word mistyped, left out and replaced by a synonym, and
    keeps the change with the lowest ranked metric, then the one that brings the best other document
    closest. It is a lower bound of the worst loss.
    """
    collection = collected(subject, task, paths)
    head = main_head(subject)
    texts = list(collection.queries.values())
    synonyms = read_synonyms(paths["synonyms"], texts)
    clean = _scores(collection, texts, head)[0]
    current, worst = list(texts), clean.copy()
    for _ in range(task.steps):
        tried = [variants(text, synonyms) for text in current]
        owner = [row for row, some in enumerate(tried) for _ in some]
        flat = [text for some in tried for text in some]
        if not flat:
            break
        ranked, margin = _scores(collection, flat, head, owner)
        best: dict[int, tuple[float, float, str]] = {}
        for row, text, score, gap in zip(owner, flat, ranked, margin, strict=True):
            key = (float(score), float(gap), text)
            best[row] = min(best.get(row, key), key)
        for row, (score, _gap, text) in best.items():
            if score <= worst[row]:
                current[row], worst[row] = text, score
    loss = clean - worst
    metrics = {
        "worst_loss": float(loss.mean()),
        task.ranked: float(clean.mean()),
        f"worst_{task.ranked}": float(worst.mean()),
    }
    sample = query_sample(collection, loss, {"clean": clean, "worst": worst})
    most = np.argsort(-loss, kind="stable")[:5].tolist()
    notes = {"examples": [{"query": texts[i], "worst": current[i]} for i in most]}
    return Scored(metrics, sample, notes)


def _scores(
    collection: Collection,
    texts: Sequence[str],
    head: list[str],
    owner: Sequence[int] | None = None,
) -> tuple[Floats, Floats]:
    """Return the ranked metric of texts, each asked for a query, and how far its answers lead.

    Args:
        collection: what is searched, by one head.
        texts: what is asked.
        head: compares.
        owner: the query of each text; None: their own.
    """
    names, ids = list(collection.queries), list(collection.documents)
    asked = collection.encoded(texts, heads=head)
    scores_TN = collection.subject.model.similarity(asked, collection.vectors, heads=head)
    ranked, margin = [], []
    for i, scores in enumerate(scores_TN):
        name = names[i if owner is None else owner[i]]
        judged = collection.relevant[name]
        run = best_documents(scores[None], ids, len(ids))[0]
        ranked.append(score_queries({name: run}, {name: judged}, [collection.metric]))
        right = np.array([judged.get(document, 0) > 0 for document in ids])
        lead = scores[right].max(initial=-np.inf) - scores[~right].max(initial=-np.inf)
        margin.append(float(lead) if np.isfinite(lead) else 0.0)
    return np.array([one[collection.metric][0] for one in ranked]), np.array(margin)


def instructions(subject: Subject, task: Instructions, paths: Paths) -> Scored:
    """Score how much the ranked metric of a query varies with the wording of the instruction.

    `spread` is the mean over queries of the standard deviation over wordings. A prompt that takes
    no instruction has a spread of 0, and the notes say so.
    """
    collection = collected(subject, task, paths)
    texts = list(collection.queries.values())
    takes = subject.model.takes_instruction("query")
    wordings = task.wordings if takes else task.wordings[:1]
    told = {"instruction": ""} if not takes else None
    rows = []
    for wording in (*wordings, *(task.unrelated if takes else ())):
        more = {"instruction": wording} if told is None else {}
        rows.append(collection.scores(collection.encoded(texts, **more)))
    each = np.array(rows[: len(wordings)])
    spread = each.std(axis=0, ddof=1) if takes else np.zeros(len(texts))
    means = each.mean(axis=1)
    metrics = {
        "spread": float(spread.mean()),
        task.ranked: float(means.mean()),
        f"best_{task.ranked}": float(means.max()),
        f"worst_{task.ranked}": float(means.min()),
    }
    if takes and task.unrelated:
        metrics[f"unrelated_{task.ranked}"] = float(np.mean(rows[len(wordings) :]))
    notes: dict[str, Any] = {"takes_instruction": takes}
    if takes:
        notes["wordings"] = dict(zip(wordings, means.tolist(), strict=True))
    columns = {f"wording_{i}": row for i, row in enumerate(each)}
    return Scored(metrics, query_sample(collection, spread, columns), notes)


def negation(subject: Subject, task: Negation, paths: Paths) -> Scored:
    """Score how often a sentence is closer to one that says the same than to its negation.

    The sentences are pairs of an STS file that say the same, the negation has a "not" behind the
    first auxiliary; `drift` is the mean of 1 - cos(sentence, negation).
    """
    rows = [
        (first, second, other)
        for first, second, gold in golden_pairs(paths["pairs"], task.fields)
        if gold >= task.least and first != second and (other := negated(first)) is not None
    ]
    if len(rows) < 2:
        raise RecordError(
            f"{paths['pairs']}: {len(rows)} pairs of {task.least} or more have a sentence that can "
            "be negated; two at least are needed"
        )
    rows = [rows[i] for i in drawn(len(rows), task, SEED)]
    flat = [text for row in rows for text in row]
    vectors = subject.fitted(flat).floats(flat, task)
    same, opposite = (cosine(vectors[::3], vectors[i::3], pairwise=True) for i in (1, 2))
    value = np.where(same == opposite, 0.5, (same > opposite).astype(float))
    metrics = {
        "accuracy": float(value.mean()),
        "drift": float(1 - opposite.mean()),
        "paraphrase_drift": float(1 - same.mean()),
    }
    ids = [str(number) for number in range(len(rows))]
    return Scored(metrics, Sample.of("mean", "pair", ids, rows, {"value": value}))
