"""Embed the stream's texts with the teacher once, in the stream's order.

    python teach.py WORK/teacher WORK/stream

Writes `NAME.ids.npy` (the row of each text: a text that comes again has one row) and `NAME.f16`,
rows of unit vectors in float16, for both files of the stream. `NAME.done` holds the number of rows
that are there; training embeds the rest as it needs it. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import embedlm

MAX_TOKENS = 256
WINDOW = 2048
"""Texts that are sorted by length and written together."""


def rows_of(path: Path) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int32]]]:
    """Return the distinct texts in order of first use, and each line's row among them."""
    rows: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        ids = [rows.setdefault(json.loads(line)["text"], len(rows)) for line in file]
    return list(rows), np.array(ids, dtype=np.int32)


class Teacher:
    """A sentence encoder that EmbedLM opens; products run in bfloat16."""

    def __init__(self, folder: Path) -> None:
        self.model = embedlm.load(folder, dtype="bfloat16", device="cpu", max_length=MAX_TOKENS)
        self.width: int = self.model.dim

    def encode(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return unit vectors (n, width)."""
        vectors: np.ndarray[Any, np.dtype[np.float32]] = self.model.encode(texts, normalize=True)
        return vectors


def teach(teacher: Teacher, path: Path, count: int | None = None) -> None:
    """Embed one file of the stream, or its first texts, from where an earlier call stopped."""
    texts, ids = rows_of(path)
    np.save(path.with_suffix(".ids.npy"), ids)
    done_path, target = path.with_suffix(".done"), path.with_suffix(".f16")
    done = int(done_path.read_text()) if done_path.is_file() else 0
    mode: Any = "r+" if target.is_file() else "w+"
    rows = np.memmap(target, np.float16, mode, shape=(len(texts), teacher.width))
    start, before = time.perf_counter(), done
    end = len(texts) if count is None else min(count, len(texts))
    while done < end:
        part = texts[done : min(done + WINDOW, end)]
        rows[done : done + len(part)] = teacher.encode(part).astype(np.float16)
        rows.flush()
        done += len(part)
        part_path = done_path.with_suffix(".part")
        part_path.write_text(str(done))
        os.replace(part_path, done_path)
        rate = (done - before) / (time.perf_counter() - start)
        print(f"{path.name}: {done} of {len(texts)}, {rate:.0f} a second", flush=True)


def main() -> None:
    """Embed both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("stream", type=Path, help="folder of texts.py or corpus.py")
    parser.add_argument("--count", type=int, help="distinct training texts; all if absent")
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher = Teacher(args.teacher)
    teach(teacher, args.stream / "held_out.jsonl")
    if (args.stream / "train.jsonl").is_file():
        teach(teacher, args.stream / "train.jsonl", args.count)


if __name__ == "__main__":
    main()
