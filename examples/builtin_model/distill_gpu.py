"""Train the student on a GPU, where the teacher embeds each batch as it is drawn.

    python distill_gpu.py WORK/narrow WORK/corpus --teacher WORK/teacher --seconds 240 -o WORK/run
    python distill_gpu.py WORK/narrow WORK/corpus --teacher WORK/teacher --seconds 60 --decay \\
        --start WORK/run/checkpoint.pt --contrastive 0.1 -o WORK/decayed

As in distill.py the rate warms up, then stays; a second run with `--start` and `--decay` lets it
fall to zero from any checkpoint. A run that was killed goes on from its own checkpoint. Checkpoints
are those of distill.py: score.py and store.py read them.

The loss is one minus the cosine to the teacher's vector, and a little of the divergence between
the teacher's and the student's similarities within the batch (as in SEED, Fang et al. 2021,
arXiv:2101.04731): what stands near what is what a search asks for. `--contrastive` adds InfoNCE
(van den Oord et al. 2018, arXiv:1807.03748) of titles with their paragraphs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from distill import STATE, adam, bind, flat_size, flatten, write_checkpoint
from packed import Bert, Corpus, cut, draw, student_means, teacher_vectors
from ridge import best_fit
from student import Student
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

PAIRS = 128
"""Titles and paragraphs of a batch, where they are contrasted."""
RIDGE_BATCHES = 16
"""Batches that the projection is fitted to, and one more that its penalty is chosen by."""


class Trainer:
    """The student, its optimizer's state and what it learns from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, args.device
        config = json.loads((args.model / "config.json").read_text(encoding="utf-8"))
        self.layers: int = config["num_hidden_layers"]
        corpus = Corpus.read(args.corpus, args.model, args.teacher, args.processes)
        self.corpus = corpus.to(self.device)
        self.teacher = Bert.load(args.teacher, self.device)
        known = Tokenizer.from_file(str(args.teacher / "tokenizer.json"))
        vocabulary = known.get_vocab()
        self.ends = (vocabulary["[CLS]"], vocabulary["[SEP]"])
        self.student = Student.load(args.model, self.layers, 384, causal=False).to(self.device)
        self.student.cos_LH = self.student.cos_LH.to(self.device)
        self.student.sin_LH = self.student.sin_LH.to(self.device)
        size = flat_size(self.student)
        self.state = {name: torch.zeros(size, device=self.device) for name in STATE}
        self.gradient = torch.zeros(size, device=self.device)
        self.progress = {"step": 0, "position": 0, "tokens": 0, "seconds": 0.0}

    def begin(self) -> None:
        """Start anew, from another run's checkpoint, or where this run was stopped."""
        own = self.args.out / "checkpoint.pt"
        path = own if own.is_file() else self.args.start
        if path is None:
            fit_projection(self)
            self.state["master"] = flatten(self.student)
            self.state["average"] = self.state["master"].clone()
        else:
            stored: dict[str, Any] = torch.load(path, map_location=self.device)
            self.state = {name: stored[name].float() for name in STATE}
            self.progress = {**stored["progress"]}
            if path is self.args.start:
                self.progress["seconds"] = 0.0
        bind(self.student, self.state["master"], self.gradient)
        if self.device == "cuda" and self.args.compile:
            self.compile()

    def compile(self) -> None:
        """Compile the layers; where that fails, go on without."""
        for layer in self.student.layers:
            layer.compile(dynamic=False)
        start = time.monotonic()
        try:
            self.learn()
            print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
        except Exception as error:
            print(f"not compiled: {str(error)[:300]}", flush=True)
            for layer in self.student.layers:
                layer._compiled_call_impl = None
        self.gradient.zero_()

    def learn(self) -> tuple[Tensor, Tensor, int]:
        """Add a new batch's gradients; return the loss, the mean cosine, and how many texts."""
        args = self.args
        batch = cut(draw(self.corpus, PAIRS if args.contrastive else 0), args.tokens)
        with torch.autocast(self.device, torch.bfloat16):
            mean_ND = student_means(self.student, self.corpus, batch, args.tokens)
        s_NE = functional.normalize(self.student.projection(mean_ND))
        t_NE = teacher_vectors(self.teacher, self.corpus, batch, self.ends)
        cosine = (s_NE * t_NE).sum(1).mean()
        loss = 1 - cosine + args.similarities * divergence(s_NE, t_NE, args.temperature)
        if args.contrastive:
            titles, paragraphs = s_NE[:PAIRS], s_NE[PAIRS : 2 * PAIRS]
            score_PP = titles @ paragraphs.T / args.temperature
            wanted_P = torch.arange(PAIRS, device=score_PP.device)
            loss = loss + args.contrastive * functional.cross_entropy(score_PP, wanted_P)
        loss.backward()
        return loss.detach(), cosine.detach(), len(s_NE)

    def update(self, rate: float) -> Tensor:
        """Take a step of Adam; return the gradients' norm."""
        state = tuple(self.state[name] for name in STATE)
        norm: Tensor = self.gradient.norm()
        self.gradient *= torch.clamp(1 / (norm + 1e-6), max=1.0)
        adam(state, self.gradient, int(self.progress["step"]), rate, self.args.averaged)
        self.gradient.zero_()
        return norm

    def save(self) -> None:
        """Write a checkpoint of this run."""
        settings = {"layers": self.layers, "attention": "bidirectional"}
        state = {name: value.cpu() for name, value in self.state.items()}
        write_checkpoint(self.args.out, state, self.progress, **settings)

    def run(self) -> None:
        """Train until the time is over."""
        args, start = self.args, time.monotonic() - self.progress["seconds"]
        saved = logged = time.monotonic()
        while (seconds := time.monotonic() - start) < args.seconds:
            left = 1 - seconds / args.seconds if args.decay else 1.0
            warm = min(1.0, (self.progress["step"] + 1) / args.warmup)
            loss, cosine, count = self.learn()
            norm = self.update(args.rate * warm * left)
            self.progress["step"] += 1
            self.progress["position"] += count
            self.progress["tokens"] += args.tokens
            self.progress["seconds"] = seconds
            if self.progress["step"] % args.log_every == 0:
                row = {"loss": float(loss), "cosine": float(cosine), "norm": float(norm)}
                if not row["loss"] == row["loss"]:
                    raise SystemExit(
                        "the loss is no number; start again to go on from the last checkpoint"
                    )
                pace = (time.monotonic() - logged) / args.log_every
                logged = time.monotonic()
                row = {k: round(v, 5) for k, v in {**self.progress, **row, "pace": pace}.items()}
                print(json.dumps(row), flush=True)
                with (args.out / "log.jsonl").open("a") as file:
                    print(json.dumps(row), file=file)
            if time.monotonic() - saved > 60 * args.save_minutes:
                self.save()
                saved = time.monotonic()
        self.save()


def divergence(s_NE: Tensor, t_NE: Tensor, temperature: float) -> Tensor:
    """Return the mean divergence of the student's similarities from the teacher's."""
    itself = torch.eye(len(s_NE), dtype=torch.bool, device=s_NE.device)
    s_NN, t_NN = (
        (x @ x.T / temperature).masked_fill(itself, -1e4).log_softmax(1) for x in (s_NE, t_NE)
    )
    return functional.kl_div(s_NN, t_NN, log_target=True, reduction="batchmean")


@torch.no_grad()
def fit_projection(trainer: Trainer) -> None:
    """Start the projection in closed form."""
    student = trainer.student
    means, vectors = [], []
    for _ in range(RIDGE_BATCHES + 1):
        batch = cut(draw(trainer.corpus), trainer.args.tokens)
        with torch.autocast(trainer.device, torch.bfloat16):
            mean_ND = student_means(student, trainer.corpus, batch, trainer.args.tokens)
        means.append(mean_ND.float().cpu())
        t_NE = teacher_vectors(trainer.teacher, trainer.corpus, batch, trainer.ends)
        vectors.append(t_NE.cpu())
    held_out = (means.pop(), vectors.pop())
    cosine, penalty, (weight_ED, bias_E) = best_fit(torch.cat(means), torch.cat(vectors), held_out)
    print(json.dumps({"ridge": round(cosine, 4), "penalty": penalty}), flush=True)
    projection = student.projection
    projection.weight.data.copy_(weight_ED)
    projection.bias.data.copy_(bias_E)


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of prune.py")
    parser.add_argument("corpus", type=Path, help="folder of corpus.py")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--start", type=Path, help="a checkpoint to begin with")
    parser.add_argument("--decay", action="store_true", help="let the rate fall to zero")
    parser.add_argument("--contrastive", type=float, default=0.0, help="weight of InfoNCE")
    parser.add_argument("--similarities", type=float, default=0.05, help="weight of the divergence")
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--tokens", type=int, default=65_536, help="of a batch")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--averaged", type=float, default=0.995)
    parser.add_argument("--save-minutes", type=float, default=2)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    trainer.begin()
    torch.manual_seed(trainer.progress["step"])
    trainer.run()


if __name__ == "__main__":
    main()
