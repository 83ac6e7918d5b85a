"""Train the student on the teacher's vectors: killed at any time, the same command goes on.

    python distill.py WORK/pruned WORK/stream --teacher WORK/teacher --layers 6 \\
        --attention bidirectional --projection WORK/ridge/6-bidirectional-0.pt -o WORK/run
    python distill.py WORK/pruned WORK/stream --teacher WORK/teacher --layers 6 \\
        --attention bidirectional --start WORK/run/checkpoint.pt --decay 400 -o WORK/decayed

The rate warms up, then stays; it has no planned end. A second run with `--start` and `--decay` lets
it fall to zero from any checkpoint, and the first run can go on from there.

Weights, gradients and the optimizer's state lie in memory that all processes share. A batch is cut
into chunks, which the processes take in turn as they get free: one that must wait for other work on
the machine holds nobody up. Each process then updates its part of the weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from graded import Pairs
from student import Student, Tokens, chunks
from teach import Teacher
from torch import Tensor

BETAS, EPSILON = (0.9, 0.98), 1e-9
CHUNK_TOKENS = 1024
AHEAD = 4096
"""Rows that the teacher embeds at a time, when training has come to the end of those there are."""
STATE = ("master", "first", "second", "average")


@dataclass(kw_only=True)
class Plan:
    """What a run does."""

    model: Path
    stream: Path
    teacher: Path
    out: Path
    layers: int
    attention: str
    projection: Path | None
    start: Path | None
    decay: int
    steps: int | None
    batch: int
    rate: float
    warmup: int
    averaged: float
    """Share of the running average kept a step."""
    pairs: Path | None
    """Scored pairs, if they stand beside the texts."""
    pairs_batch: int
    pairs_weight: float
    processes: int
    save_minutes: float

    def factor(self, step: int, first: int) -> float:
        """Return the rate's factor at a step; `first` is where the decay begins."""
        warm = min(1.0, (step + 1) / self.warmup)
        return warm if not self.decay else max(0.0, 1 - (step - first) / self.decay)


class Shared:
    """What all processes see."""

    def __init__(self, size: int, processes: int, context: Any) -> None:
        self.weights = torch.zeros(size, dtype=torch.bfloat16).share_memory_()
        self.gradients = torch.zeros(processes, size, dtype=torch.bfloat16).share_memory_()
        self.state = {name: torch.zeros(size).share_memory_() for name in STATE}
        self.loss, self.square = (torch.zeros(processes).share_memory_() for _ in range(2))
        self.barrier, self.next = context.Barrier(processes), context.Value("q", 0)


def flat_size(student: Student) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for p in student.parameters())


def bind(student: Student, weights: Tensor, gradients: Tensor | None) -> None:
    """Make the parameters and their gradients views of flat tensors."""
    offset = 0
    for parameter in student.parameters():
        view = slice(offset, offset + parameter.numel())
        parameter.data = weights[view].view_as(parameter)
        if gradients is not None:
            parameter.grad = gradients[view].view_as(parameter)
        offset = view.stop


def flatten(student: Student) -> Tensor:
    """Return all parameters in one tensor."""
    return torch.cat([p.detach().float().flatten() for p in student.parameters()])


def make_student(plan: Plan, width: int) -> Student:
    """Return the student as it starts, in float32."""
    student = Student.load(plan.model, plan.layers, width, plan.attention == "causal")
    if plan.projection is not None:
        weight, bias = torch.load(plan.projection)
        student.projection.weight.data, student.projection.bias.data = weight, bias
    return student


class Stream:
    """Texts and teacher's vectors by position."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "train.jsonl"
        with self.path.open(encoding="utf-8") as file:
            self.texts = [json.loads(line)["text"] for line in file]
        self.ids = np.load(self.path.with_suffix(".ids.npy"))
        rows: Any = np.memmap(self.path.with_suffix(".f16"), np.float16, "r+")
        self.rows = rows.reshape(int(self.ids.max()) + 1, -1)
        self.width: int = self.rows.shape[1]
        self.first_use = np.unique(self.ids, return_index=True)[1]

    def done(self) -> int:
        """Return how many rows the teacher has written."""
        return int(self.path.with_suffix(".done").read_text())

    def needed(self, start: int, count: int) -> int:
        """Return how many rows some texts need."""
        places = [(start + i) % len(self.texts) for i in range(count)]
        return int(self.ids[places].max()) + 1

    def teach(self, teacher: Teacher, shared: Shared, rank: int) -> None:
        """Embed the next rows, all processes together."""
        done = self.done()
        end = min(done + AHEAD, len(self.rows))
        parts = range(done, end, AHEAD // 32)
        while (n := take_chunk(shared, len(parts))) is not None:
            rows = slice(parts[n], min(parts[n] + AHEAD // 32, end))
            vectors = teacher.encode([self.texts[i] for i in self.first_use[rows]])
            self.rows[rows] = vectors.astype(np.float16)
        self.rows.flush()
        shared.barrier.wait()
        if rank == 0:
            shared.next.value = 0
            part = self.path.with_suffix(".done.part")
            part.write_text(str(end))
            os.replace(part, self.path.with_suffix(".done"))
        shared.barrier.wait()

    def take(self, start: int, count: int) -> tuple[list[str], Tensor]:
        """Return some texts and their vectors."""
        places = [(start + i) % len(self.texts) for i in range(count)]
        ids = self.ids[places]
        return [self.texts[i] for i in places], torch.from_numpy(self.rows[ids].astype(np.float32))


def take_chunk(shared: Shared, count: int) -> int | None:
    """Return the next chunk that nobody has taken."""
    with shared.next.get_lock():
        n: int = shared.next.value
        shared.next.value += 1
    return n if n < count else None


class Learner:
    """What a process learns with: the student, its tokenizer and the scored pairs."""

    def __init__(self, plan: Plan, student: Student) -> None:
        self.student, self.tokens = student, Tokens(plan.model)
        self.weight = plan.pairs_weight
        self.pairs = None if plan.pairs is None else Pairs(plan.pairs, plan.pairs_batch)

    def learn(self, texts: list[str], y_NE: Tensor, shared: Shared, step: int) -> float:
        """Add the gradients of the chunks that this process takes; return their summed loss."""
        ids = self.tokens(texts)
        groups = chunks([len(x) for x in ids], CHUNK_TOKENS)
        total = 0.0
        while (n := take_chunk(shared, len(groups) + (self.pairs is not None))) is not None:
            if n == len(groups) and self.pairs is not None:
                loss = self.weight * self.pairs.loss(self.student, self.tokens, step)
            else:
                group = groups[n]
                flat = torch.tensor([token for i in group for token in ids[i]])
                v_NE = self.student(flat, [len(ids[i]) for i in group])
                loss = (1 - (v_NE * y_NE[group]).sum(-1)).sum() / len(texts)
            loss.backward()
            total += float(loss.detach())
        return total


def update(
    shared: Shared, part: slice, rank: int, step: int, rate: float, averaged: float
) -> float:
    """Take one step of Adam on a part of the weights; return the gradients' norm."""
    gradient = shared.gradients[:, part].float().sum(0)
    shared.square[rank] = gradient.square().sum()
    shared.gradients[:, part].zero_()
    shared.barrier.wait()
    norm = float(shared.square.sum().sqrt())
    gradient *= min(1.0, 1.0 / (norm + 1e-6))
    master, first, second, average = (shared.state[name][part] for name in STATE)
    adam((master, first, second, average), gradient, step, rate, averaged)
    shared.weights[part] = master.bfloat16()
    return norm


def adam(
    state: tuple[Tensor, ...], gradient: Tensor, step: int, rate: float, averaged: float
) -> None:
    """Take one step of Adam on weights, moments and running average, in `STATE`'s order."""
    master, first, second, average = state
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    scale = math.sqrt(1 - BETAS[1] ** (step + 1))
    denominator = second.sqrt().div_(scale).add_(EPSILON)
    master.addcdiv_(first, denominator, value=-rate / (1 - BETAS[0] ** (step + 1)))
    average.lerp_(master, 1 - min(averaged, (step + 1) / (step + 10)))


def write_checkpoint(
    folder: Path, state: Mapping[str, Tensor], progress: Mapping[str, Any], **settings: Any
) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    path = folder / "checkpoint.pt"
    torch.save({**state, **settings, "progress": dict(progress)}, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def save(plan: Plan, shared: Shared, progress: dict[str, Any]) -> None:
    """Write a checkpoint of this run."""
    settings = {"layers": plan.layers, "attention": plan.attention}
    write_checkpoint(plan.out, shared.state, progress, **settings)


def work(rank: int, plan: Plan, shared: Shared, progress: dict[str, Any]) -> None:
    """Train in one process."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    stream = Stream(plan.stream)
    student = make_student(plan, stream.width).bfloat16()
    bind(student, shared.weights, shared.gradients[rank])
    learner, teacher = Learner(plan, student), Teacher(plan.teacher)
    size = len(shared.weights)
    part = slice(size * rank // plan.processes, size * (rank + 1) // plan.processes)
    saved, logged, losses = time.monotonic(), time.monotonic(), []
    parent = mp.parent_process()
    assert parent is not None
    last = plan.steps if not plan.decay else progress["decay_from"] + plan.decay
    for step in itertools.count(progress["step"]):
        if last is not None and step >= last:
            break
        if not parent.is_alive():  # it was killed: nobody would end this process
            return
        while stream.needed(progress["position"], plan.batch) > stream.done():
            stream.teach(teacher, shared, rank)
        texts, y_NE = stream.take(progress["position"], plan.batch)
        shared.loss[rank] = learner.learn(texts, y_NE, shared, step)
        shared.barrier.wait()
        shared.next.value = 0
        rate = plan.rate * plan.factor(step, progress["decay_from"])
        norm = update(shared, part, rank, step, rate, plan.averaged)
        losses.append(float(shared.loss.sum()))
        progress |= {"step": step + 1, "position": progress["position"] + plan.batch}
        if rank == 0 and (step + 1) % 20 == 0:
            progress["seconds"] += time.monotonic() - logged
            log(plan, progress, loss=sum(losses) / len(losses), rate=rate, norm=norm)
            logged, losses = time.monotonic(), []
        shared.barrier.wait()
        if rank == 0 and time.monotonic() - saved > 60 * plan.save_minutes:
            save(plan, shared, progress)
            saved = time.monotonic()
    shared.barrier.wait()
    if rank == 0:
        save(plan, shared, progress)


def log(plan: Plan, progress: dict[str, Any], **values: float) -> None:
    """Add a line to the log."""
    row = {**progress, **values, "time": time.time()}
    with (plan.out / "log.jsonl").open("a") as file:
        print(json.dumps({k: round(v, 6) for k, v in row.items()}), file=file)


def begin(plan: Plan, shared: Shared, student: Student) -> dict[str, Any]:
    """Fill the shared state from a checkpoint, or from the model; return the progress."""
    own = plan.out / "checkpoint.pt"
    path = own if own.is_file() else plan.start
    progress: dict[str, Any] = {"step": 0, "position": 0, "seconds": 0.0, "decay_from": 0}
    if path is None:
        for name in ("master", "average"):
            shared.state[name].copy_(flatten(student))
    else:
        state = torch.load(path, mmap=True)
        for name in STATE:
            shared.state[name].copy_(state[name])
        progress = {name: state["progress"][name] for name in progress}
        if path == plan.start:
            progress["decay_from"] = progress["step"]
    shared.weights.copy_(shared.state["master"])
    return progress


def main() -> None:
    """Start the processes and end when they do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of prune.py")
    parser.add_argument("stream", type=Path, help="folder of texts.py")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--attention", choices=("causal", "bidirectional"), default="bidirectional")
    parser.add_argument("--projection", type=Path, help="of ridge.py")
    parser.add_argument("--start", type=Path, help="a checkpoint to begin with")
    parser.add_argument("--decay", type=int, default=0, help="steps to let the rate fall to zero")
    parser.add_argument("--steps", type=int, help="end there")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--averaged", type=float, default=0.995)
    parser.add_argument("--pairs", type=Path, help="scored pairs, learnt beside the texts")
    parser.add_argument("--pairs-batch", type=int, default=32)
    parser.add_argument("--pairs-weight", type=float, default=0.1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--save-minutes", type=float, default=5)
    plan = Plan(**vars(parser.parse_args()))
    plan.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    student = make_student(plan, Stream(plan.stream).width)
    context = mp.get_context("spawn")
    shared = Shared(flat_size(student), plan.processes, context)
    progress = begin(plan, shared, student)
    workers = [
        context.Process(target=work, args=(n, plan, shared, progress), daemon=True)
        for n in range(plan.processes)
    ]
    for worker in workers:
        worker.start()
    while all(worker.exitcode is None for worker in workers):
        time.sleep(1)
    if any(worker.exitcode for worker in workers):
        for worker in workers:
            worker.terminate()
        raise SystemExit("a process ended early; start again to go on from the last checkpoint")
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
