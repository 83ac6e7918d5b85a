"""Two checkouts against each other: encode.py's workloads and training, in turn, in one run.

    python benchmarks/before_after.py BEFORE AFTER [--rounds 5] [--layers 4] [--only WORKLOAD]

BEFORE and AFTER are checkouts of this repository. For each workload both run in processes of their
own that stay alive and take turns; the ratio is the median of the rounds' ratios, before / after:
above 1 the second checkout is faster. Training runs `train.py`'s own side once a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.encode import OURS, Contender, other_work, smallest_cosine, workload
from benchmarks.shape import build_model
from benchmarks.train import write_pairs

ENCODING = {"mixed lengths": 96, "sentences, built-in model": 2048, "short queries": 512}
TRAINING = "training, pairs of mixed lengths"
PAIRS, STEPS, LONGEST = 64, 4, 120


def surroundings(checkout: Path) -> dict[str, str]:
    """Return the environment in which a process imports the package from a checkout."""
    return {
        **os.environ,
        "PYTHONPATH": f"{checkout / 'src'}{os.pathsep}{checkout}",
        "EMBEDLM_CACHE": str(checkout / ".cache"),
    }


def encoding(name: str, checkouts: list[Path], model: Path, args: Any) -> list[float]:
    """Return the ratios of the rounds of one of encode.py's workloads."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    work = workload(name, tokenizer, ENCODING[name])
    contenders = []
    for number, checkout in enumerate(checkouts):
        folder = model.parent / str(number)
        folder.mkdir(exist_ok=True)
        if not (folder / "model").exists():
            (folder / "model").symlink_to(model)
        (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
        place = argparse.Namespace(device="cpu", threads=args.threads)
        script = checkout / "benchmarks" / "contender.py"
        contenders.append(
            Contender(OURS, folder / "model", place, script=script, env=surroundings(checkout))
        )
    rounds = []
    for number in range(args.rounds):
        turn = contenders if number % 2 else contenders[::-1]
        seconds = {contender: contender.seconds() for contender in turn}
        rounds.append(seconds[contenders[0]] / seconds[contenders[1]])
    before, after = (contender.end()[0] for contender in contenders)
    cosine = smallest_cosine(before, after)
    if cosine < 0.9999:
        raise SystemExit(f"{name}: the checkouts give other vectors, cosine {cosine:.5f}")
    return rounds


def training(checkouts: list[Path], model: Path, args: Any) -> list[float]:
    """Return the ratios of the rounds of training, by the median step but for the first."""
    data = model.parent / "pairs.jsonl"
    write_pairs(model, data, PAIRS, LONGEST)
    rounds = []
    for number in range(args.rounds):
        medians: dict[Path, float] = {}
        for checkout in checkouts if number % 2 else checkouts[::-1]:
            command = [sys.executable, str(checkout / "benchmarks" / "train.py"), "--side", "ours"]
            command += ["--folder", str(model), "--data", str(data), "--pairs", str(PAIRS)]
            command += ["--steps", str(STEPS), "--threads", str(args.threads)]
            run = subprocess.run(
                command, env=surroundings(checkout), capture_output=True, text=True, check=True
            )
            steps = json.loads(run.stdout.splitlines()[-1])["seconds"]
            medians[checkout] = statistics.median(steps[1:])
        rounds.append(medians[checkouts[0]] / medians[checkouts[1]])
    return rounds


def main() -> None:
    """Measure both checkouts in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4, help="layers of the 0.6B shape")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=[*ENCODING, TRAINING])
    args = parser.parse_args()
    import embedlm

    checkouts = [args.before.resolve(), args.after.resolve()]
    if (busy := other_work()) > 0.1:
        print(f"Other work took {busy:.0%} of the machine: these numbers are not to be quoted.")
    with tempfile.TemporaryDirectory() as temporary:
        shaped, builtin = (
            Path(temporary) / "shaped" / "model",
            Path(temporary) / "builtin" / "model",
        )
        build_model(shaped, layers=args.layers)
        embedlm.load("builtin-base", dtype="float32").save_pretrained(builtin)
        for name in [*ENCODING, TRAINING]:
            if args.only not in (None, name):
                continue
            if name == TRAINING:
                rounds = training(checkouts, builtin, args)
            else:
                model = builtin if "built-in" in name else shaped
                rounds = encoding(name, checkouts, model, args)
            spread = f"{min(rounds):.2f} to {max(rounds):.2f}"
            print(
                f"{name:34} before / after {statistics.median(rounds):.2f} ({spread})", flush=True
            )


if __name__ == "__main__":
    main()
