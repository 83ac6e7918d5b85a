"""Two checkouts against each other: the same texts, in turn, by the processor's seconds.

    python benchmarks/before_after.py BEFORE AFTER [--rounds 7]

BEFORE and AFTER are checkouts of this repository. Each round runs both in processes of their own,
one after the other; the ratio is the median of the rounds' ratios, before / after: above 1 the
second is faster. Processor seconds, not the clock's, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

WORK = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import embedlm, torch
torch.set_num_threads(1)
words = "plants make food from light and water while members review the plan of the river".split()
def text(i, n):
    return " ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(n))
works = {
    "built-in model, sentences": ("builtin", None, [text(i, 12 + i % 9) for i in range(600)]),
    "mixed lengths": ("builtin-base", "plain-mean", [text(i, 3 + i * i % 180) for i in range(240)]),
    "short queries, one by one": ("builtin", None, [text(i, 6) for i in range(60)]),
}
seconds = {}
for name, (source, recipe, texts) in works.items():
    model = embedlm.load(source, recipe) if recipe else embedlm.load(source)
    calls = [[one] for one in texts] if "one by one" in name else [texts]
    model.encode(texts[:8])
    start = time.process_time()
    for call in calls:
        model.encode(call, show_progress=False)
    seconds[name] = time.process_time() - start
print(json.dumps(seconds))
"""


def measured(checkout: Path) -> dict[str, float]:
    """Return the processor seconds of each workload in a checkout."""
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": "1",
        "EMBEDLM_CACHE": str(checkout / ".cache"),
    }
    run = subprocess.run(
        [sys.executable, "-c", WORK], env=surroundings, capture_output=True, text=True, check=True
    )
    seconds: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    """Measure both checkouts in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        order = [arguments.before, arguments.after]
        pair = {checkout: measured(checkout) for checkout in (order if number % 2 else order[::-1])}
        for name, seconds in pair[arguments.before].items():
            ratios.setdefault(name, []).append(seconds / pair[arguments.after][name])
    for name, values in ratios.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:28} before / after {statistics.median(values):.2f} ({spread})")


if __name__ == "__main__":
    main()
