"""Write the folders of `builtin` and `builtin-base`, int8 by row, with their cards.

    python store.py WORK/narrow WORK/decayed/checkpoint.pt --base WORK/base -o WORK/models

`WORK/models/tuned` and `WORK/models/base` take the places of the folders below
`src/embedlm/builtin`. `--scores` fills the table of scores into the cards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from distill import bind
from safetensors.torch import save_file
from student import Student

import embedlm
from embedlm import Recipe

HERE = Path(__file__).parent
MAX_LENGTH = 256
RECIPE = {
    "name": "builtin",
    "summary": "The built-in model: both directions, the mean of all tokens, a projection.",
    "section": "3",
    "backbone": {"attention": "bidirectional"},
    "prompt": {"default": "{text}", "max_length": MAX_LENGTH},
    "pooling": {"kind": "mean"},
    "heads": [{"dense": {"projection": "auto"}}],
    "normalize": True,
    "notes": "Distilled from all-MiniLM-L6-v2; the model card has data, stages and scores.",
}


def open_checkpoint(folder: Path, checkpoint: Path, weights: str) -> Student:
    """Return the student of a checkpoint, in float32."""
    state: dict[str, Any] = torch.load(checkpoint, mmap=True)
    student = Student.load(folder, state["layers"], 384, state["attention"] == "causal")
    bind(student, state[weights].clone(), None)
    return student


def write_json(path: Path, value: Any) -> None:
    """Write a file of settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_plain(folder: Path, student: Student, out: Path) -> None:
    """Write the student as sentence-transformers' modules, in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, out / name)
    weights = {n: p.detach().to(torch.bfloat16) for n, p in student.named_parameters()}
    dense = {
        "linear.weight": weights.pop("projection.weight"),
        "linear.bias": weights.pop("projection.bias"),
    }
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    (out / "2_Dense").mkdir(exist_ok=True)
    save_file({n: w.float() for n, w in dense.items()}, out / "2_Dense/model.safetensors")
    direction = {} if student.causal else {"is_causal": False}
    config = {**student.config, "architectures": ["LlamaModel"], "dtype": "bfloat16", **direction}
    write_json(out / "config.json", {k: v for k, v in config.items() if k != "_model_name_or_path"})
    width, inner = dense["linear.weight"].shape
    shape = {"in_features": inner, "out_features": width, "bias": True}
    activation = {"activation_function": "torch.nn.modules.linear.Identity"}
    write_json(out / "2_Dense/config.json", {**shape, **activation})
    pooling = {"word_embedding_dimension": inner, "pooling_mode_mean_tokens": True}
    write_json(out / "1_Pooling/config.json", pooling)
    paths = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(paths.items())
    ]
    write_json(out / "modules.json", modules)
    write_json(out / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH})


def table(scores: Path) -> str:
    """Return the scores of models, one row each, as Markdown."""
    rows: dict[str, dict[str, float]] = json.loads(scores.read_text(encoding="utf-8"))
    tasks = list(next(iter(rows.values())))
    lines = ["| Model | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{row[task]:.3f}" if task in row else "–" for task in tasks)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def store(plain: Path, out: Path, recipe: Recipe, card: str) -> None:
    """Write a folder of EmbedLM with int8 rows, and its card."""
    model = embedlm.load(plain, recipe, dtype="bfloat16", device="cpu")
    model.save_pretrained(out, save_dtype="int8")
    (out / "README.md").write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of prune.py")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder of prune.py")
    parser.add_argument("--weights", choices=("average", "master"), default="average")
    parser.add_argument("--scores", type=Path, help="scores by the model's name and the task")
    args = parser.parse_args()
    student = open_checkpoint(args.model, args.checkpoint, args.weights)
    texts = torch.load(args.checkpoint, mmap=True)["progress"]["position"]
    facts = {
        "{texts}": f"{texts:,}",
        "{scores}": "Not measured yet." if args.scores is None else table(args.scores),
    }
    cards = {name: (HERE / f"{name}_card.md").read_text("utf-8") for name in ("tuned", "base")}
    for blank, value in facts.items():
        cards = {name: card.replace(blank, value) for name, card in cards.items()}
    with tempfile.TemporaryDirectory() as plain:
        write_plain(args.model, student, Path(plain))
        store(Path(plain), args.out / "tuned", Recipe.model_validate(RECIPE), cards["tuned"])
    store(args.base, args.out / "base", Recipe.load("plain-mean"), cards["base"])


if __name__ == "__main__":
    main()
