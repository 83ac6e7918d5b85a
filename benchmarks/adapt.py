"""Adaptation: documents alone are given, and the queries that people wrote say what was gained.

    python benchmarks/adapt.py cranfield --data DATA [-m MODEL] [--teacher MODEL] [--llm MODEL]
        [-o DIR] [--cache DIR] [--steps N] [--batch N] [--negatives N] [--learning-rate X]

`embedlm.adapt` sees the corpus of a retrieval set and none of its queries. Then the base and the
model that was kept are scored on the set's own queries, with the interval of the difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

OPTIONS = {
    "steps": int,
    "batch": int,
    "negatives": int,
    "per_chunk": int,
    "queries_limit": int,
    "learning_rate": float,
    "chunk_tokens": int,
    "train": str,
    "llm": str,
    "teacher": str,
}


def tell(kind: str, values: Any) -> None:
    """Print an event of the run in one line."""
    print(kind, {k: v for k, v in values.items() if len(str(v)) < 400}, file=sys.stderr, flush=True)


def main() -> None:
    """Adapt, then score both models on the true queries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("-m", "--model")
    parser.add_argument("-o", "--output", default="adapted")
    parser.add_argument("--cache", help="folder of finished evaluations")
    for name, kind in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    chosen = parser.parse_args()

    import embedlm
    from embedlm.evaluation.comparison import compare
    from embedlm.evaluation.suite import known_tasks

    corpus = Path(chosen.data) / known_tasks()[chosen.task].files.corpus  # type: ignore[attr-defined]
    given = {name: getattr(chosen, name) for name in OPTIONS if getattr(chosen, name) is not None}
    start = time.monotonic()
    report = embedlm.adapt(corpus, chosen.model, chosen.output, on_event=tell, **given)
    print(f"adapted in {time.monotonic() - start:.0f} s; kept {report['kept']}: {report['why']}")
    base, adapted = (
        embedlm.evaluate(model, [chosen.task], data=chosen.data, cache=chosen.cache)
        for model in (chosen.model, Path(chosen.output) / "model")
    )
    (row,) = compare(base, adapted, ("base", "adapted")).tasks
    low, high = row.interval
    print(
        f"{row.task}, {row.n} true queries: {row.metric} {row.a:.4f} -> {row.b:.4f}, difference "
        f"{row.difference:+.4f} [{low:+.4f}, {high:+.4f}], p {row.p:.4f} ({row.test})"
    )


if __name__ == "__main__":
    main()
