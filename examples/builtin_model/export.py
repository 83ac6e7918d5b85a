"""Write a checkpoint as a transformers folder: bfloat16 safetensors, tokenizer, model card.

python export.py WORK/run WORK/tokens --tokenizer WORK/tokenizer -o builtin/base
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from data import open_stream
from pretrain import Plan, held_out, make_model

CARD = Path(__file__).with_name("model_card.md")


def export_model(state: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    """Write config, weights rounded to bfloat16, and tokenizer."""
    plan = Plan(**state["plan"])
    model = make_model(plan)
    model.load_state_dict(state["model"])
    model.config.use_cache = model.generation_config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)


def held_out_table(found: dict[str, dict[str, float]]) -> str:
    """Return the held-out scores as the rows of a Markdown table."""
    rows = [
        "| Held-out text | Tokens | Perplexity per token | Bits per byte |",
        "|---|---|---|---|",
    ]
    for source, values in found.items():
        rows.append(
            f"| {source} | {values['tokens']:,.0f} | {values['perplexity']:.1f} "
            f"| {values['bits_per_byte']:.3f} |"
        )
    return "\n".join(rows)


def scores_section(card: Path) -> str:
    """Keep the scores that were filled into an earlier card by hand."""
    text = card.read_text() if card.is_file() else CARD.read_text()
    return text.partition("## Scores\n")[2]


def write_card(
    folder: Path, state: dict[str, Any], found: dict[str, dict[str, float]], train_tokens: int
) -> None:
    """Fill the numbers of this checkpoint into the card's template."""
    plan = Plan(**state["plan"])
    model = make_model(plan)
    seen = state["step"] * plan.step_tokens
    decayed = "to zero" if state["step"] == state["last"] else "this is an intermediate state"
    numbers = {
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M",
        "layers": str(plan.layers),
        "hidden": str(plan.hidden),
        "heads": str(model.config.num_attention_heads),
        "kv_heads": str(model.config.num_key_value_heads),
        "ffn": str(model.config.intermediate_size),
        "vocab": f"{plan.vocab:,}",
        "length": str(plan.length),
        "steps": f"{state['step']:,}",
        "batch": f"{plan.step_tokens:,}",
        "seen": f"{seen / 1e6:.1f} M",
        "epochs": f"{seen / train_tokens:.2f}",
        "decayed": decayed,
        "held_out": held_out_table(found),
    }
    head = CARD.read_text().partition("## Scores\n")[0]
    for name, value in numbers.items():
        head = head.replace("{" + name + "}", value)
    (folder / "README.md").write_text(f"{head}## Scores\n{scores_section(folder / 'README.md')}")


def main() -> None:
    """Export beside the target, measure what was written, then put it in place file by file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of pretrain.py")
    parser.add_argument("stream", type=Path, help="folder of data.py")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of tokenizer.py")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--limit", type=int, help="held-out sequences of each source; all if absent"
    )
    args = parser.parse_args()

    state = torch.load(args.run / "checkpoint.pt", weights_only=True, map_location="cpu")
    part = args.out.with_name(args.out.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    export_model(state, args.tokenizer, part)
    model = make_model(Plan(**state["plan"])).from_pretrained(part)
    found = held_out(model, args.stream, state["plan"]["length"], args.limit)
    if (args.out / "README.md").is_file():
        shutil.copyfile(args.out / "README.md", part / "README.md")
    write_card(part, state, found, len(open_stream(args.stream / "train.bin")))
    args.out.mkdir(exist_ok=True)
    for file in part.iterdir():
        os.replace(file, args.out / file.name)
    part.rmdir()
    print(found, sum(file.stat().st_size for file in args.out.iterdir()), "bytes")


if __name__ == "__main__":
    main()
