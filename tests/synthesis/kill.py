"""Kills `embedlm synthesize` again and again, at moments of its whole time.

    python -m tests.synthesis.kill [TIMES [PIPELINE]]

The language model is a server on loopback that fails now and then. Each pipeline is killed so
often, then finished; its file must have the bytes of one that was never stopped.
"""

import random
import sys
import tempfile
from pathlib import Path

from tests.chat_server import serving
from tests.mining.kill import kill_again, write_set
from tests.synthesis.writer_server import WriterServer


def main(times, *only):
    """Kill each pipeline, or those named, so often; end with an error where a file differs."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name, serving(WriterServer) as start:
        folder, model = Path(name), start(delay=0.02)
        write_set(folder)
        inputs = {
            "inpars": [folder / "corpus.jsonl", "--count", 120],
            "e5-short-long": ["--count", 20],
        }
        for pipeline in only or inputs:
            given = inputs[pipeline]

            def words(out, pipeline=pipeline, given=given):
                # A cache for each file: the job that is killed must not find the other's answers.
                cache = folder / f"{out.stem}-{rng.random() if 'whole' in out.name else ''}.sqlite"
                # Fewer than the attempts of a request: failures that a killed run has left over
                # must not add up, or one that is never answered is set aside, which is right.
                model.script[:] = [rng.choice([200, 500, "malformed"]) for _ in range(5)]
                llm = f"{model.url}#writer"
                options = ["--llm", llm, "--block", 4, "--cache", cache, "-o", out]
                return ["synthesize", pipeline, *given, *options]

            kill_again(folder, pipeline, words, times, rng)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, *sys.argv[2:])
