"""Pre-train the built-in model on a token stream; stop and go on at any step, to the same weights.

    python pretrain.py WORK/tokens -o WORK/run --tokens 25000000
    echo 300 > WORK/run/finish        # decay over the next 300 steps, then end

The same command goes on after a stop or a kill. `torchrun --nproc-per-node N pretrain.py ...`
shares the micro-batches of a step among N processes; on a CPU that others use too, one process a
core with one thread each is much faster than one process with many threads.

Learning rate: linear warm-up, constant, linear decay to zero over the last steps (WSD,
arXiv:2404.06395), so that a run can be ended at any time by a short decay. The layers' matrices are
trained by Muon (https://kellerjordan.github.io/posts/muon), embeddings and norms by AdamW. Weights
are float32, products bfloat16.

Shapes: B sequences, L tokens of each, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from data import BOS_ID, EOS_ID, PAD_ID, TokenIds, open_stream
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the weights."""

    vocab: int = 12_288
    hidden: int = 384
    layers: int = 6
    length: int = 512
    micro_batch: int = 8
    accumulate: int = 2
    tokens: int = 25_000_000
    warmup: int = 100
    decay: int = 600
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.length * self.micro_batch * self.accumulate

    @property
    def steps(self) -> int:
        """Steps until `tokens` are seen."""
        return math.ceil(self.tokens / self.step_tokens)


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where the run is, and where it ends; `finish` moves the end."""

    step: int
    decay_from: int
    last: int


def make_model(plan: Plan) -> LlamaForCausalLM:
    """Return a model with fresh weights."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=plan.vocab,
        hidden_size=plan.hidden,
        intermediate_size=plan.hidden * 8 // 3,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.hidden // 64,
        num_key_value_heads=plan.hidden // 192,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def make_optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings and norms."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    ids = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in ids]
    muon = torch.optim.Muon(
        inner, lr=plan.muon_lr, weight_decay=plan.weight_decay, momentum=0.95, nesterov=True
    )
    adam = torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adam]


def set_rates(optimizers: list[torch.optim.Optimizer], plan: Plan, factor: float) -> None:
    """Set both optimizers' learning rates to `factor` times their peaks."""
    for optimizer, peak in zip(optimizers, (plan.muon_lr, plan.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor


def rate(progress: Progress, warmup: int) -> float:
    """Return the factor of the learning rates at a step."""
    if progress.step < warmup:
        return (progress.step + 1) / warmup
    if progress.step < progress.decay_from:
        return 1.0
    return (progress.last - progress.step) / (progress.last - progress.decay_from)


def rows_at(stream: TokenIds, start: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return ids_BL and, one token on, targets_BL."""
    ids = np.asarray(stream[start : start + rows * length + 1], dtype=np.int64)
    ids_T = torch.from_numpy(ids)
    return ids_T[:-1].view(rows, length), ids_T[1:].view(rows, length)


def make_loss(model: LlamaForCausalLM) -> LossFunction:
    """Return the mean next-token cross-entropy in nats; foreseeing a BOS is too easy to count."""

    def loss(ids_BL: Tensor, targets_BL: Tensor) -> Tensor:
        with torch.autocast(ids_BL.device.type, dtype=torch.bfloat16):
            logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        return F.cross_entropy(
            logits_BLV.flatten(0, 1).float(), targets_BL.flatten(), ignore_index=BOS_ID
        )

    return loss


def average_gradients(model: LlamaForCausalLM, micro_batches: int) -> None:
    """Divide the gradients, summed over all micro-batches of all processes, by their number."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    if dist.is_initialized():
        dist.all_reduce(flat)
    flat /= micro_batches
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train_step(
    loss: LossFunction,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    batches: Iterator[tuple[Tensor, Tensor]],
    micro_batches: int,
) -> float:
    """Do one step over this process's micro-batches and return their loss."""
    losses = []
    for ids_BL, targets_BL in batches:
        value = loss(ids_BL.to(model.device), targets_BL.to(model.device))
        losses.append(value.detach())
        value.backward()
    average_gradients(model, micro_batches)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(torch.stack(losses).mean())


@torch.no_grad()
def held_out(
    model: LlamaForCausalLM, tokens: Path, length: int, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Return nats a token, perplexity and bits a byte of each held-out stream.

    `limit` is the number of sequences of each stream; None takes all.
    """
    counts = json.loads((tokens / "counts.json").read_text())
    loss = make_loss(model)
    found = {}
    for file in sorted(tokens.glob("held_out_*.bin")):
        stream = open_stream(file)
        n_rows = min(limit or len(stream), (len(stream) - 1) // length)
        total, n_targets = 0.0, 0
        for row in range(n_rows):
            ids_BL, targets_BL = rows_at(stream, row * length, 1, length)
            n = int((targets_BL != BOS_ID).sum())
            total += float(loss(ids_BL.to(model.device), targets_BL.to(model.device))) * n
            n_targets += n
        count = counts[file.stem]
        nats = total / n_targets
        bits = nats / math.log(2) * (count["tokens"] - count["pieces"]) / count["bytes"]
        found[file.stem.removeprefix("held_out_")] = {
            "nats": nats,
            "perplexity": math.exp(nats),
            "bits_per_byte": bits,
            "tokens": n_targets,
        }
    return found


def save_checkpoint(
    path: Path,
    plan: Plan,
    progress: Progress,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Write all that the next step depends on, under a temporary name, and rename it."""
    state = {
        "plan": asdict(plan),
        **asdict(progress),
        "rng": torch.get_rng_state(),
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(
    path: Path, plan: Plan, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    """Restore a run and return where it was."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["plan"] != asdict(plan):
        raise SystemExit(
            f"{path} belongs to another plan, {state['plan']}: give the same flags, or a new folder"
        )
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"])
    return Progress(step=state["step"], decay_from=state["decay_from"], last=state["last"])


def heed_finish(path: Path, progress: Progress, factor: float) -> bool:
    """Decay to zero from now on if somebody wrote a number of steps into the file `finish`.

    The line starts at today's `factor`, so that an end can also be moved during the decay.
    """
    steps = torch.tensor(int(path.read_text()) if path.is_file() else -1)
    if dist.is_initialized():
        dist.broadcast(steps, src=0)
    if steps < 0:
        return False
    progress.last = progress.step + int(steps)
    progress.decay_from = progress.last - round(int(steps) / factor)
    return True


def write_log(path: Path, entry: dict[str, Any]) -> None:
    """Append one line of JSON."""
    with path.open("a") as log:
        print(json.dumps(entry), file=log)


@dataclass(kw_only=True, slots=True)
class Run:
    """One process of a training run: the plan, the state, and where it lies on disk."""

    plan: Plan
    stream: Path
    out: Path
    save_every: int
    evaluate_every: int
    stop_at: int | None
    compile: bool
    rank: int
    world: int

    def batches(self, ids: TokenIds, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's micro-batches of a step."""
        size = self.plan.micro_batch * self.plan.length
        for part in range(self.rank, self.plan.accumulate, self.world):
            start = (step * self.plan.step_tokens + part * size) % (len(ids) - size)
            yield rows_at(ids, start, self.plan.micro_batch, self.plan.length)

    def train(self) -> None:
        """Train from the folder's checkpoint, or from the start, to the end of the plan."""
        plan, ids = self.plan, open_stream(self.stream / "train.bin")
        model = make_model(plan)
        model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        optimizers = make_optimizers(model, plan)
        checkpoint, finish = self.out / "checkpoint.pt", self.out / "finish"
        progress = Progress(step=0, decay_from=plan.steps - plan.decay, last=plan.steps)
        if checkpoint.is_file():
            progress = load_checkpoint(checkpoint, plan, model, optimizers)
        loss = make_loss(model)
        if self.compile:
            loss = torch.compile(loss, dynamic=False)

        while progress.step < min(progress.last, self.stop_at or progress.last):
            started = time.perf_counter()
            finishing = heed_finish(finish, progress, rate(progress, plan.warmup))
            set_rates(optimizers, plan, factor := rate(progress, plan.warmup))
            batches = self.batches(ids, progress.step)
            entry = {"loss": train_step(loss, model, optimizers, batches, plan.accumulate)}
            progress.step += 1
            seconds = time.perf_counter() - started
            if self.rank == 0:
                ends = progress.step in (progress.last, self.stop_at)
                self.report(model, progress, ends, {"lr": factor, **entry}, seconds)
                if progress.step % self.save_every == 0 or ends or finishing:
                    save_checkpoint(checkpoint, plan, progress, model, optimizers)
                if finishing:
                    finish.unlink()

    def report(
        self,
        model: LlamaForCausalLM,
        progress: Progress,
        ends: bool,
        entry: dict[str, Any],
        seconds: float,
    ) -> None:
        """Log every tenth step, and the held-out loss now and then."""
        if progress.step % 10 and not ends:
            return
        tokens = progress.step * self.plan.step_tokens
        entry = {"step": progress.step, "last": progress.last, "tokens": tokens, **entry}
        entry["tokens_per_second"] = round(self.plan.step_tokens / seconds)
        if progress.step % self.evaluate_every == 0 or ends:
            entry |= held_out(model, self.stream, self.plan.length, limit=32)
        write_log(self.out / "log.jsonl", entry)


def join_processes() -> tuple[int, int]:
    """Return this process's rank and the number of processes that torchrun started."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    # A paused process must not look like a dead one to the others.
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=7))
    return dist.get_rank(), dist.get_world_size()


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stream", type=Path, help="folder of data.py")
    parser.add_argument("-o", "--out", type=Path, required=True, help="run folder")
    parser.add_argument("--save-every", type=int, default=50, help="steps")
    parser.add_argument("--evaluate-every", type=int, default=200, help="steps")
    parser.add_argument("--stop-at", type=int, help="leave at this step, to go on later")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    for name, default in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = vars(parser.parse_args())

    plan = Plan(**{name: args.pop(name) for name in asdict(Plan())})
    rank, world = join_processes()
    args["out"].mkdir(parents=True, exist_ok=True)
    (args["out"] / f"pid{rank}").write_text(f"{os.getpid()}\n")
    Run(plan=plan, rank=rank, world=world, **args).train()


if __name__ == "__main__":
    main()
