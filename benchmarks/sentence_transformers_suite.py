"""sentence-transformers' own tests: by itself, and with our models in the place of its own.

    python benchmarks/sentence_transformers_suite.py CHECKOUT [TESTS ...] [--out FOLDER]

CHECKOUT is a checkout of sentence-transformers; the package that is tested is the installed one.
The tests run without a network, on small stand-ins for the models of the hub (`suite_hub.py`). In
the second run each SentenceTransformer that is opened by a name or folder is one that embedlm
loaded, by `suite_plugin.py`. Printed are the counts, and each test that passes by itself alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/sentence_transformer", "tests/base/test_model.py", "tests/base/test_trainer.py"]
TESTS += ["tests/base/test_model_card.py", "tests/base/test_data_collator.py"]
TESTS += ["tests/base/test_model_type_subclass.py", "tests/util/test_hard_negatives.py"]
TESTS += ["tests/util/test_retrieval.py", "tests/util/test_similarity.py"]

Outcomes = dict[str, tuple[str, str]]


def run(checkout: Path, tests: list[str], out: Path, *, bridge: bool) -> Outcomes:
    """Return the outcome of each test, and the last line of what went wrong."""
    hub, written = out / "hub", out / f"{'ours' if bridge else 'theirs'}.json"
    work = out / "suite"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()  # without the checkout's own package, so that the installed one is imported
    shutil.copytree(checkout / "tests", work / "tests")
    shutil.copy(checkout / "pyproject.toml", work)
    environment = {
        "OMP_NUM_THREADS": "1",  # the models are small
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "EMBEDLM_SUITE_BRIDGE": "1" if bridge else "",
        "EMBEDLM_SUITE_OUT": str(written),
    }
    if not hub.exists():
        script = str(ROOT / "benchmarks" / "suite_hub.py")
        subprocess.run(
            [sys.executable, script, str(hub), str(checkout / "README.md")],
            check=True,
            env=environment,
        )
    plugin = ["-p", "benchmarks.suite_plugin", "-p", "no:cacheprovider"]
    with (out / f"{written.stem}.log").open("w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=short", *plugin, *tests],
            cwd=work,
            env=environment,
            stdout=log,
            stderr=log,
            check=False,
        )
    outcomes: Outcomes = json.loads(written.read_text(encoding="utf-8"))
    return outcomes


def report(theirs: Outcomes, ours: Outcomes) -> None:
    """Print the counts and the tests that differ."""
    passed = [name for name, (outcome, _) in theirs.items() if outcome == "passed"]
    lost = [name for name in passed if ours.get(name, ("missing", ""))[0] != "passed"]
    for name in lost:
        outcome, reason = ours.get(name, ("missing", ""))
        print(f"{outcome}  {name}\n        {reason}")
    gained = [name for name, (outcome, _) in ours.items() if outcome == "passed"]
    print(f"{len(theirs)} tests; {len(passed)} pass by itself, and of these")
    print(f"{len(passed) - len(lost)} with embedlm's models; {len(set(gained) - set(passed))} more")


def main() -> None:
    """Run the tests both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tests", nargs="*", default=TESTS)
    parser.add_argument("--out", type=Path, help="keeps the stand-ins, logs and outcomes")
    parser.add_argument("--only", choices=["theirs", "ours"], help="the other run's is read there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = (args.out or Path(scratch)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        sides: list[Outcomes] = []
        for side in ("theirs", "ours"):
            kept = out / f"{side}.json"
            if args.only in (None, side):
                sides.append(run(args.checkout, args.tests, out, bridge=side == "ours"))
            else:
                sides.append(json.loads(kept.read_text(encoding="utf-8")))
        report(*sides)


if __name__ == "__main__":
    main()
