"""Pre-train the built-in model on a token stream; stop and go on at any step, to the same weights.

    python pretrain.py WORK/tokens --tokenizer WORK/tokenizer -o WORK/run --tokens 25000000
    echo 300 > WORK/run/finish        # decay over the next 300 steps, then end

Learning rate: linear warm-up, constant, linear decay to zero over the last steps (WSD). Matrices of
the layers are trained by Muon, the rest by AdamW. Weights are float32, products bfloat16.

Shapes: B sequences, L tokens of each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import open_stream
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that decides the weights."""

    hidden: int = 384
    layers: int = 6
    length: int = 512
    micro_batch: int = 8
    accumulate: int = 2
    tokens: int = 25_000_000
    warmup: int = 100
    decay: int = 400
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


def make_model(plan: Plan, vocab_size: int) -> LlamaForCausalLM:
    """Return a model with fresh weights."""
    torch.manual_seed(plan.seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=plan.hidden,
        intermediate_size=plan.hidden * 8 // 3,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.hidden // 64,
        num_key_value_heads=plan.hidden // 192,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
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


def rate(step: int, plan: Plan, decay_from: int, last: int) -> float:
    """Return the factor of the learning rates at a step."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    if step < decay_from:
        return 1.0
    return max(last - step, 0) / max(last - decay_from, 1)


def batch_at(stream: Any, plan: Plan, step: int, part: int) -> Tensor:
    """Return the tokens of one micro-batch, ids_BL; the stream is read front to back."""
    size = plan.micro_batch * plan.length
    start = (step * plan.accumulate + part) * size % (len(stream) - size)
    ids = np.asarray(stream[start : start + size], dtype=np.int64)
    return torch.from_numpy(ids).view(plan.micro_batch, plan.length)


def loss_of(model: Any, ids_BL: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats."""
    with torch.autocast(ids_BL.device.type, dtype=torch.bfloat16):
        logits_BLV = model(input_ids=ids_BL).logits
    flat = logits_BLV[:, :-1].reshape(-1, logits_BLV.shape[-1]).float()
    return torch.nn.functional.cross_entropy(flat, ids_BL[:, 1:].reshape(-1))


def held_out(model: Any, tokens: Path, plan: Plan, limit: int = 64) -> dict[str, float]:
    """Return per source the nats a token and bits a byte on at most `limit` sequences."""
    counts = json.loads((tokens / "counts.json").read_text())
    found: dict[str, float] = {}
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for file in sorted(tokens.glob("held_out_*.bin")):
            stream = open_stream(file)
            n = min(limit, len(stream) // plan.length)
            ids = np.asarray(stream[: n * plan.length], dtype=np.int64)
            rows = torch.from_numpy(ids).view(n, plan.length).to(device)
            losses = [float(loss_of(model, part)) for part in rows.split(8)]
            nats = sum(losses) / len(losses)
            count = counts[file.stem]
            found[f"{file.stem}_nats"] = nats
            found[f"{file.stem}_bits_per_byte"] = (
                nats / math.log(2) * count["tokens"] / count["bytes"]
            )
    model.train()
    return found


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name and rename it."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def parse() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stream", type=Path, help="folder of data.py")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True, help="run folder")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--evaluate-every", type=int, default=200)
    parser.add_argument("--stop-at", type=int, default=None, help="leave at this step, to go on")
    parser.add_argument("--no-compile", action="store_true")
    for name, default in asdict(Plan()).items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args()


def train_step(
    model: Any, optimizers: list[torch.optim.Optimizer], stream: Any, plan: Plan, step: int
) -> float:
    """Do one step and return its loss."""
    total = 0.0
    device = next(model.parameters()).device
    for part in range(plan.accumulate):
        loss = loss_of(model, batch_at(stream, plan, step, part).to(device)) / plan.accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def main() -> None:
    """Train, or go on training."""
    args = parse()
    plan = Plan(**{name: getattr(args, name) for name in asdict(Plan())})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "pid").write_text(str(os.getpid()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stream = open_stream(args.stream / "train.bin")
    vocabulary = json.loads((args.tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    model = make_model(plan, -(-len(vocabulary) // 64) * 64).to(device)
    optimizers = make_optimizers(model, plan)
    base = [[g["lr"] for g in o.param_groups] for o in optimizers]
    step, last, decay_from = 0, plan.steps, plan.steps - plan.decay
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        if state["plan"] != asdict(plan):
            raise SystemExit(f"{checkpoint} is of another plan: {state['plan']}")
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, last, decay_from = state["step"], state["last"], state["decay_from"]
    compiled: Any = model if args.no_compile else torch.compile(model)
    model.train()
    started, first = time.perf_counter(), step
    log = (args.out / "log.jsonl").open("a")
    while step < min(last, args.stop_at or last):
        finish = args.out / "finish"
        if finish.is_file() and last == plan.steps:
            decay_from, last = step, step + int(finish.read_text())
        factor = rate(step, plan, decay_from, last)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, value in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = value * factor
        loss = train_step(compiled, optimizers, stream, plan, step)
        step += 1
        entry: dict[str, Any] = {"step": step, "tokens": step * plan.step_tokens, "loss": loss}
        entry |= {"lr": factor, "last": last}
        if step % args.evaluate_every == 0 or step == last:
            entry |= held_out(model, args.stream, plan)
        if step % 10 == 0 or step == last:
            seconds = time.perf_counter() - started
            entry["tokens_per_second"] = round((step - first) * plan.step_tokens / seconds)
            print(json.dumps(entry), file=log, flush=True)
        if step % args.save_every == 0 or step == last or step == args.stop_at:
            save(
                checkpoint,
                {
                    "plan": asdict(plan),
                    "step": step,
                    "last": last,
                    "decay_from": decay_from,
                    "model": model.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                },
            )


if __name__ == "__main__":
    main()
