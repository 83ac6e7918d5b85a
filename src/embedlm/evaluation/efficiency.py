"""What vectors cost: time, memory and bytes, and the quality of shorter and coarser ones."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.data import read_rows
from embedlm.encode.precision import WITH_RANGES, quantize, ranges_of, truncate
from embedlm.errors import InputError, RecordError
from embedlm.evaluation.collection import judged_sample, losses_told
from embedlm.evaluation.metrics import best_documents, score_queries
from embedlm.evaluation.probes import Forms, Speed
from embedlm.evaluation.readers import text_of
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.statistics import SEED
from embedlm.evaluation.subject import Scored, Subject
from embedlm.readout.embeddings import Embeddings

__all__ = ["forms", "speed"]

Paths = Mapping[str, Path]


def speed(subject: Subject, task: Speed, paths: Paths) -> Scored:
    """Measure texts and tokens a second, memory, and bytes a vector.

    The texts are drawn by seed and differ. A first run of a few warms up and is not counted.
    Tokens are those that the model reads, its prompt among them. `peak_memory_mb` is the most that
    this process ever held, `weights_mb` the network's own.
    """
    rows = [text_of(row, where, task.fields.text) for where, row in read_rows(paths["texts"])]
    unique = list(dict.fromkeys(rows))
    if len(unique) < 2:
        raise RecordError(f"{paths['texts']}: {len(unique)} different texts; give two at least")
    order = np.random.default_rng(SEED).permutation(len(unique))[: task.count]
    texts = [unique[i] for i in order.tolist()]
    subject = subject.fitted(texts)
    vectors = subject.encode(texts[: max(2, len(texts) // 20)], task, task.role)
    tokens, seconds = _tokens(subject, texts, task), []
    for _ in range(task.repeats):
        start = time.perf_counter()
        vectors = subject.encode(texts, task, task.role)
        seconds.append(time.perf_counter() - start)
    rates = {
        "texts_per_second": len(texts) / np.array(seconds),
        "tokens_per_second": tokens / np.array(seconds),
    }
    parameters = list(subject.model.backbone.network.parameters())
    metrics = {
        **{name: float(values.mean()) for name, values in rates.items()},
        "tokens_per_text": tokens / len(texts),
        "bytes_per_vector": _bytes(vectors) / len(texts),
        "peak_memory_mb": _peak_memory(),
        "weights_mb": sum(one.numel() * one.element_size() for one in parameters) / 2**20,
    }
    ids = [str(number) for number in range(task.repeats)]
    columns = {"value": rates[task.metric], **rates}
    texts_of_runs = [[f"{len(texts)} texts, run {number}"] for number in ids]
    sample = Sample.of("mean", "run", ids, texts_of_runs, columns)
    return Scored(metrics, sample, {"texts": len(texts), "tokens": tokens})


def _tokens(subject: Subject, texts: Sequence[str], task: Speed) -> int:
    more = {"max_length": subject.options.get("max_length")}
    told = task.told(task.role)
    if told is not None and subject.model.takes_instruction(task.role):
        more["instruction"] = told
    batches = subject.model.render(list(texts), task.role, **more)
    whole = batches if isinstance(batches, list) else [batches]
    return sum(len(row) for batch in whole for row in batch.ids)


def _bytes(vectors: Any) -> int:
    """Return the bytes of vectors of all heads."""
    if not isinstance(vectors, Embeddings):
        return int(vectors.nbytes)
    total = 0
    for head in vectors.heads:
        value = vectors[head]
        if isinstance(value, list):
            total += sum(rows.nbytes for rows in value)
        elif hasattr(value, "indptr"):
            total += value.data.nbytes + value.indices.nbytes
        else:
            total += value.nbytes
    return total


def _peak_memory() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 2**20 if sys.platform == "darwin" else peak / 2**10)


def forms(subject: Subject, task: Forms, paths: Paths) -> Scored:
    """Score retrieval with vectors of fewer dimensions and smaller numbers.

    Texts are embedded once; the vectors are cut and quantised as `encode` does it. int8 and uint8
    take their ranges from the documents. A width above the model's is left out.

    Raises:
        InputError: the recipe has no dense head, or the call says a width or precision itself.
    """
    _check(subject)
    data = judged_sample(subject, task, paths)
    texts = list(data.documents.values())
    subject = subject.fitted(texts)
    documents = subject.corpus(texts, task, ["dense"])
    asked = subject.encode(list(data.queries.values()), task, "query", heads=["dense"])
    keys = [[d for d, gain in data.relevant[q].items() if gain > 0] for q in data.queries]
    each: dict[str, npt.NDArray[np.float64]] = {}
    sizes: dict[str, int] = {}
    for dim in _widths(task, documents.shape[1]):
        cut = [_cut(subject, vectors, dim) for vectors in (asked, documents)]
        for precision in task.precisions:
            ranges = ranges_of(cut[1]) if precision in WITH_RANGES else None
            q, d = (quantize(vectors, precision, ranges) for vectors in cut)
            name = f"dim{dim}_{precision}"
            run = best_documents(subject.model.similarity(q, d), list(data.documents), 100)
            runs = dict(zip(data.queries, run, strict=True))
            each[name] = np.array(score_queries(runs, data.relevant, [task.metric])[task.metric])
            sizes[name] = int(d[:1].nbytes)
    full = next(iter(each.values()))
    metrics: dict[str, float] = {task.metric: float(full.mean())}
    for name, values in each.items():
        metrics[f"{name}_{task.metric}"] = float(values.mean())
        metrics[f"{name}_bytes"] = float(sizes[name])
    losses = {name: full - values for name, values in list(each.items())[1:]}
    notes = {"losses": losses_told(losses, keys)}
    sample = Sample.of(
        "mean",
        "query",
        list(data.queries),
        [[text] for text in data.queries.values()],
        {"value": full, **each},
        keys,
    )
    return Scored(metrics, sample, notes)


def _check(subject: Subject) -> None:
    if not any(head.kind == "dense" for head in subject.model.recipe.heads):
        raise InputError(
            "the task measures dense vectors of several widths and precisions, and the recipe "
            f"{subject.model.recipe.name!r} has no dense head; take another model or task"
        )
    given = [
        name
        for name, plain in (("dim", None), ("precision", "float32"))
        if subject.options.get(name) not in (None, plain)
    ]
    if given:
        raise InputError(
            f"the task tries several values of {' and '.join(given)} itself; leave --"
            f"{' and --'.join(given)} out"
        )


def _widths(task: Forms, width: int) -> list[int]:
    widths = [width if dim is None else dim for dim in task.dims]
    return list(dict.fromkeys(dim for dim in widths if dim <= width))


def _cut(subject: Subject, vectors: npt.NDArray[Any], dim: int) -> npt.NDArray[Any]:
    recipe, asked = subject.model.recipe, subject.options.get("normalize")
    unit = recipe.normalize and recipe.renormalize if asked is None else bool(asked)
    return truncate(vectors, dim, renormalize=unit and dim < vectors.shape[1])
