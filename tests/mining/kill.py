"""Kills `embedlm mine` and `embedlm score` again and again, at moments of their whole time.

    python -m tests.mining.kill MODEL [TIMES [JOB]]

MODEL is a folder. Each job is killed so often, then finished; its file must have the bytes of one
that was never stopped, and nothing else may be left.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.command import sentences, server


def write_set(folder):
    """Write 600 passages and 60 records."""
    texts = list(dict.fromkeys(sentences(700, seed=1)))[:600]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"id": f"d{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    )
    rows = [
        {"query": query, "positives": [texts[i]], "negatives": [texts[-i - 1]]}
        for i, query in enumerate(sentences(60, seed=2))
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def jobs(folder, model):
    """Return the words of each command, without its output."""
    options = ["-m", model, "-r", "plain-mean", "--device", "cpu", "--block", "4"]
    records = folder / "records.jsonl"
    corpus = ["--corpus", folder / "corpus.jsonl", "-k", 3, "--filter", "perc_pos=0.95"]
    return {
        "mine": ["mine", records, *corpus, *options],
        "mine-bm25": ["mine", records, *corpus, "-m", "bm25", "--block", "4"],
        "score": ["score", records, *options],
    }


def kill_again(folder, job, words, times, rng):
    """Kill a job so often at moments of its whole time, then finish it; its bytes must be those."""
    whole, killed = folder / f"{job}-whole.jsonl", folder / f"{job}-killed.jsonl"
    for _ in range(2):  # the first run imports what the others find in memory
        start = time.monotonic()
        done = server()(*words(whole), folder=folder)
        took = time.monotonic() - start
        assert done.code == 0, done.err
    ends = []
    while ends.count(-9) < times:
        moment = (str(folder), 1, rng.uniform(0, took))
        found = server()(*words(killed), folder=folder, kill_at=moment)
        ends.append(found.code)
        assert found.code in (-9, 0), found.err
        if killed.exists():
            assert killed.read_bytes() == whole.read_bytes()
            if found.code == 0:
                killed.unlink()  # finished in spite of the kills: from the start again
    done = server()(*words(killed), folder=folder)
    assert done.code == 0, done.err
    assert killed.read_bytes() == whole.read_bytes()
    left = [path.name for path in folder.iterdir() if path.suffix in (".part", ".work", ".tmp")]
    assert left == [], left
    told = f"killed {times} times, finished {ends.count(0)} times; the same bytes"
    print(f"{job}: {took:.1f} s; {told}", flush=True)


def main(model, times, *only):
    """Kill each job, or those named, so often; end with an error where a file differs."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder)
        found = jobs(folder, model)
        for job in only or found:
            words = found[job]
            kill_again(folder, job, lambda out, words=words: [*words, "-o", out], times, rng)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20, *sys.argv[3:])
