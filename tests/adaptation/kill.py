"""Kills `embedlm adapt` again and again, at moments of its whole time.

    python -m tests.adaptation.kill MODEL [TIMES [SEED]]

MODEL is a folder, and SEED draws the moments. Runs are killed so often, each then goes on until it
is finished; it must end in the files of one that was never stopped, byte by byte, and nothing else
may be left.
"""

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.adaptation.conftest import write_documents
from tests.command import server

OPTIONS = (
    *("--device", "cpu", "--steps", "8", "--batch", "4", "--negatives", "2", "--train", "all"),
    *("--learning-rate", "0.01", "--filter", "perc_pos=1", "--chunk-tokens", "200"),
)


def files_of(folder):
    """Return the content of all files below a folder, by their names."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


def main(model, times, seed):
    """Kill runs so often; end with an error where a file differs."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = write_documents(folder / "documents")
        words = ["adapt", documents, "-m", model, *OPTIONS]
        whole, killed = folder / "whole", folder / "killed"
        for _ in range(2):  # the first run imports what the others find in memory
            shutil.rmtree(whole, ignore_errors=True)
            start = time.monotonic()
            done = server()(*words, "-o", whole, folder=folder)
            took = time.monotonic() - start
            assert done.code == 0, done.err
        expected, kills, finished = files_of(whole), 0, 0
        while kills < times or (killed / "report.json").exists() is False:
            at_once = (str(documents), 1, rng.uniform(0, took))
            kill_at = at_once if kills < times else None
            done = server()(*words, "-o", killed, folder=folder, kill_at=kill_at)
            assert done.code in (-9, 0), done.err
            kills += done.code == -9
            if done.code == 0:
                assert files_of(killed) == expected
                finished += 1
                if kills < times:  # finished in spite of the kills: from the start again
                    shutil.rmtree(killed)
        told = f"{len(expected)} files, {took:.1f} s; killed {kills} times, finished {finished}"
        print(f"{told} times, always the same bytes", flush=True)


if __name__ == "__main__":
    given = list(map(int, sys.argv[2:]))
    main(sys.argv[1], *given, *(20, 0)[len(given) :])
