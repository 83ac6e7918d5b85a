"""A corpus as a map, coloured by cluster, and how similar some of its texts are.

Shapes: N texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.embedder import Embedder
from embedlm.errors import InputError, require
from embedlm.evaluation.statistics import SEED
from embedlm.readout.similarity import normalize
from embedlm.studies.report.marks import COLOURS, heat
from embedlm.studies.report.panels import Panel, Table

__all__ = ["map_panels"]

MOST = 2000
"""Texts of a map; of more, so many are drawn by seed."""
COMPARED = 16
"""Texts of the table of similarities."""
_SIDE = 480
_SHOWN = 160


def map_panels(model: Embedder, texts: Sequence[str], *, clusters: int = 8) -> list[Panel]:
    """Return a map of texts, and the similarities of some.

    Args:
        model: embeds them as documents.
        texts: at least 20.
        clusters: how many k-means finds.

    Raises:
        InputError: too few texts.
        MissingExtraError: scikit-learn is not installed.
    """
    require("sklearn", "eval")
    if len(texts) < max(20, clusters):
        raise InputError(
            f"a map needs {max(20, clusters)} texts, and there are {len(texts)}; give more"
        )
    chosen = np.arange(len(texts))
    if len(texts) > MOST:
        chosen = np.sort(np.random.default_rng(SEED).choice(len(texts), MOST, replace=False))
    shown = [texts[i] for i in chosen.tolist()]
    vectors: Any = model.encode(shown, role="document", heads=["dense"])
    v_ND = normalize(np.asarray(vectors))
    return [_map(v_ND, shown, len(texts), clusters), _similar(v_ND, shown)]


def _map(v_ND: npt.NDArray[np.float32], texts: Sequence[str], count: int, clusters: int) -> Panel:
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE, trustworthiness

    groups = KMeans(clusters, n_init=4, random_state=SEED).fit_predict(v_ND)
    perplexity = min(30.0, (len(texts) - 1) / 4)
    place_N2 = TSNE(
        2, perplexity=perplexity, init="pca", metric="cosine", random_state=SEED
    ).fit_transform(v_ND)
    trusted = trustworthiness(v_ND, place_N2, n_neighbors=10, metric="cosine")
    middles = [v_ND[groups == g].mean(axis=0) for g in range(clusters)]
    typical = [
        texts[int(np.flatnonzero(groups == g)[(v_ND[groups == g] @ middle).argmax()])]
        for g, middle in enumerate(middles)
    ]
    rows = [
        [str(g + 1), str(int((groups == g).sum())), _short(typical[g], 120)]
        for g in range(clusters)
    ]
    drawn = "" if count == len(texts) else f" of {count:,}, drawn by seed {SEED}"
    answer = (
        f"{len(texts):,} texts{drawn}. Near points are near in the model's space for {trusted:.0%} "
        "of neighbours (trustworthiness at 10); distances between far groups mean nothing. "
        "t-SNE by cosine, k-means on the whole vectors."
    )
    legend = "Point at a mark, or use the arrow keys, to read a text."
    table = Table(["cluster", "texts", "the most typical text"], rows)
    return Panel("What is in the corpus?", answer, _cloud(place_N2, groups, texts), legend, table)


def _cloud(place_N2: Any, groups: Any, texts: Sequence[str]) -> str:
    low, high = place_N2.min(axis=0), place_N2.max(axis=0)
    at_N2 = 12 + (place_N2 - low) / np.maximum(high - low, 1e-9) * (_SIDE - 24)
    order = np.argsort(groups, kind="stable")
    radius = 4 if len(texts) <= 500 else 2.6
    marks = []
    for i in order.tolist():
        x, y = at_N2[i]
        tip = escape(f"{groups[i] + 1}: {_short(texts[i], _SHOWN)}")
        marks.append(
            f'<circle class="mark c{groups[i] % COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" '
            f'data-tip="{tip}"/>'
        )
    names = []
    for g in np.unique(groups).tolist():
        x, y = np.median(at_N2[groups == g], axis=0)
        names.append(
            f'<text class="tag" x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{g + 1}</text>'
        )
    return (
        f'<svg class="map" viewBox="0 0 {_SIDE} {_SIDE}" tabindex="0" role="img" '
        f'aria-label="map of {len(texts)} texts">{"".join(marks)}{"".join(names)}</svg>'
    )


def _similar(v_ND: npt.NDArray[np.float32], texts: Sequence[str]) -> Panel:
    some = np.linspace(0, len(texts) - 1, min(COMPARED, len(texts))).astype(int)
    labels = [_short(texts[i], 90) for i in some.tolist()]
    scores = v_ND[some] @ v_ND[some].T
    rows = [
        [str(i + 1), label, *(f"{value:.2f}" for value in scores[i])]
        for i, label in enumerate(labels)
    ]
    head = ["", "text", *(str(i + 1) for i in range(len(labels)))]
    answer = f"Cosines of {len(labels)} texts from all over the corpus."
    plot = heat(scores.tolist(), labels)
    legend = "The stronger the colour, the more alike; use the arrow keys to read a cell."
    return Panel("How similar are texts to each other?", answer, plot, legend, Table(head, rows))


def _short(text: str, longest: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
