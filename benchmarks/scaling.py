"""Time and peak memory of EmbedLM as work grows: 1,000, 10,000 and 100,000 texts of a sentence.

    python benchmarks/scaling.py [--sizes 1000,10000,100000] [--svg docs/assets/scaling.svg]

Each size is a process of its own that streams from file to file with the built-in model
(`embedlm encode`), so that the model and the interpreter are in every figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

RUN = """
import sys, time
from benchmarks.contender import peak_mb
import embedlm
from embedlm.bulk import encode_file
model = embedlm.load()
model.encode(["warm"] * 8)
start = time.perf_counter()
encode_file(model, sys.argv[1], sys.argv[2], show_progress=False)
print(time.perf_counter() - start, peak_mb())
"""
WIDTH, HEIGHT, EDGE = 560, 220, 60


def write_texts(path: Path, count: int) -> None:
    """Write distinct sentences of 8 to 40 tokens."""
    import embedlm
    from benchmarks.shape import mixed_texts

    texts = mixed_texts(embedlm.load("builtin-base").tokenizer, min(count, 5000), 8, 40)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            file.write(json.dumps({"text": f"{texts[index % len(texts)]} {index}"}) + "\n")


def measure(count: int, folder: Path) -> tuple[float, float]:
    """Return seconds and peak memory in MB."""
    source, target = folder / f"{count}.jsonl", folder / f"{count}.npy"
    write_texts(source, count)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(source), str(target)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def svg(rows: list[tuple[int, float, float]]) -> str:
    """Return a plot of milliseconds a text and of peak memory, both flat where all is well."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{HEIGHT + EDGE}" '
        'font-family="sans-serif" font-size="18" fill="#7b7f8c">'
    ]
    series = (
        ("milliseconds a text", [(n, 1000 * s / n) for n, s, _ in rows]),
        ("peak memory, MB", [(n, p) for n, _, p in rows]),
    )
    for place, (title, points) in enumerate(series):
        left, top = place * WIDTH + EDGE, max(y for _, y in points) * 1.25
        step = (WIDTH - 2 * EDGE) / max(1, len(points) - 1)
        at = [
            (left + i * step, HEIGHT - y / top * (HEIGHT - 40)) for i, (_, y) in enumerate(points)
        ]
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in at)
        parts.append(f'<text x="{left}" y="18">{title}</text>')
        parts.append(
            f'<line x1="{left}" y1="{HEIGHT}" x2="{at[-1][0]:.0f}" y2="{HEIGHT}" stroke="#888"/>'
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="#5c6bc0" stroke-width="2"/>')
        for (x, y), (n, value) in zip(at, points, strict=True):
            parts.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="3" fill="#5c6bc0"/>')
            parts.append(f'<text x="{x - 16:.0f}" y="{y - 8:.0f}">{value:.3g}</text>')
            parts.append(f'<text x="{x - 20:.0f}" y="{HEIGHT + 18}">{n:,}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Print a table and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--svg", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    print("| texts | seconds | texts a second | peak MB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, args.sizes.split(",")):
            seconds, peak = measure(count, Path(folder))
            rows.append((count, seconds, peak))
            print(
                f"| {count:,} | {seconds:.2f} | {count / seconds:,.0f} | {peak:.0f} |", flush=True
            )
            time.sleep(1)
    if args.svg is not None:
        args.svg.parent.mkdir(parents=True, exist_ok=True)
        args.svg.write_text(svg(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
