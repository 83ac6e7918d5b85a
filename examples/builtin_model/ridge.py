"""Fit the projection in closed form, and say what depth, attention and sink do to it.

    python ridge.py WORK/pruned WORK/stream --count 4000 --layers 6 8 10 -o WORK/ridge

Least squares with a penalty from mean-pooled states to the teacher's vectors; the penalty is the
one with the best cosine on held-out texts. `WORK/ridge/LAYERS-ATTENTION.pt` holds weight and bias.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from student import Student, Tokens, chunks, pool
from torch import Tensor
from torch.nn import functional

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Times the number of texts: features have unit variance."""


def read_stream(path: Path, count: int | None = None) -> tuple[list[str], Tensor]:
    """Return the first texts of a stream and the teacher's vectors."""
    with path.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in itertools.islice(file, count)]
    ids = np.load(path.with_suffix(".ids.npy"))
    rows = np.memmap(path.with_suffix(".f16"), np.float16, "r").reshape(ids.max() + 1, -1)
    return texts, torch.from_numpy(rows[ids[: len(texts)]].astype(np.float32))


@torch.inference_mode()
def features(
    student: Student, ids: Sequence[Sequence[int]], depths: Sequence[int], skips: Sequence[int]
) -> dict[tuple[int, int], Tensor]:
    """Return the mean normed states (N, D) after some layers, without some first tokens."""
    shape = (len(ids), student.config["hidden_size"])
    means = {(depth, skip): torch.empty(shape) for depth in depths for skip in skips}
    for group in chunks([len(x) for x in ids], 1024):
        flat = torch.tensor([token for i in group for token in ids[i]])
        lengths = [len(ids[i]) for i in group]
        for depth, h_TD in enumerate(student.inner_states(flat, lengths), 1):
            for skip in skips if depth in depths else ():
                means[depth, skip][group] = pool(student.norm(h_TD), lengths, skip)
    return means


def fit(x_ND: Tensor, y_NE: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Return weight (E, D) and bias (E,) of the penalised least squares."""
    x_D, y_E, scale_D = x_ND.mean(0), y_NE.mean(0), x_ND.std(0)
    x_ND, y_NE = ((x_ND - x_D) / scale_D).double(), (y_NE - y_E).double()
    eye_DD = torch.eye(x_ND.shape[1], dtype=torch.double)
    gram_DD = x_ND.T @ x_ND + penalty * len(x_ND) * eye_DD
    weight_ED = torch.linalg.solve(gram_DD, x_ND.T @ y_NE).T.float() / scale_D
    return weight_ED, y_E - weight_ED @ x_D


def best_fit(
    x_ND: Tensor, y_NE: Tensor, held_out: tuple[Tensor, Tensor]
) -> tuple[float, float, tuple[Tensor, Tensor]]:
    """Return the best penalty's cosine on held-out texts, the penalty, weight and bias."""
    x_MD, y_ME = held_out
    fits = [(penalty, fit(x_ND, y_NE, penalty)) for penalty in PENALTIES]
    scored = [
        (float(functional.cosine_similarity(functional.linear(x_MD, *w), y_ME).mean()), penalty, w)
        for penalty, w in fits
    ]
    return max(scored, key=lambda row: row[0])


def main() -> None:
    """Write a projection for every depth and direction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of prune.py")
    parser.add_argument("stream", type=Path, help="folder of texts.py, with the teacher's vectors")
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 8, 10])
    parser.add_argument("--attention", nargs="+", default=["causal", "bidirectional"])
    parser.add_argument("--skip", type=int, nargs="+", default=[0, 1])
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    tokens = Tokens(args.model)
    texts, y_NE = read_stream(args.stream / "train.jsonl", args.count)
    unseen, y_ME = read_stream(args.stream / "held_out.jsonl")
    ids = tokens([*texts, *unseen])
    for attention in args.attention:
        student = Student.load(args.model, max(args.layers), y_NE.shape[1], attention == "causal")
        student.bfloat16()
        for (depth, skip), x_ND in features(student, ids, args.layers, args.skip).items():
            held_out = (x_ND[len(texts) :], y_ME)
            cosine, penalty, found = best_fit(x_ND[: len(texts)], y_NE, held_out)
            row = {"layers": depth, "attention": attention, "skip": skip, "cosine": cosine}
            print(json.dumps({**row, "penalty": penalty}), flush=True)
            torch.save(found, args.output / f"{depth}-{attention}-{skip}.pt")


if __name__ == "__main__":
    main()
