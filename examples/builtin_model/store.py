"""Write a checkpoint as a model folder that EmbedLM and sentence-transformers open.

    python store.py WORK/pruned WORK/decayed/checkpoint.pt -o WORK/model [--int8]

`--int8` stores every matrix as int8 with one float16 scale a row (`NAME` and `NAME.scale`); without
it the weights are bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from distill import bind
from safetensors.torch import save_file
from student import MAX_TOKENS, Student
from torch import Tensor

TYPES = "sentence_transformers.models."


def quantize_rows(weight_OD: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 rows and their scales (O,), in float16.

    The scale is the one of a few below the row's maximum that leaves the least square error.
    """
    weight_OD = weight_OD.float()
    top_O = weight_OD.abs().amax(1).clamp_min(1e-12)
    best_O = torch.full_like(top_O, torch.inf)
    scale_O = top_O / 127
    for share in torch.linspace(0.75, 1.0, 11):
        tried_O = (top_O * share / 127).half().float().clamp_min(6e-8)
        rounded_OD = (weight_OD / tried_O[:, None]).round().clamp(-127, 127)
        error_O = (rounded_OD * tried_O[:, None] - weight_OD).square().sum(1)
        scale_O = torch.where(error_O < best_O, tried_O, scale_O)
        best_O = torch.minimum(error_O, best_O)
    rows_OD = (weight_OD / scale_O[:, None]).round().clamp(-127, 127).to(torch.int8)
    return rows_OD, scale_O.half()


def pack(weights: dict[str, Tensor], int8: bool) -> dict[str, Tensor]:
    """Return the tensors as they are stored."""
    packed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if int8 and weight.ndim == 2:
            packed[name], packed[f"{name}.scale"] = quantize_rows(weight)
        else:
            packed[name] = weight.to(torch.bfloat16).contiguous()
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 weights of what `pack` returned."""
    return {
        name: weight.float()
        * (packed[f"{name}.scale"].float()[:, None] if weight.dtype == torch.int8 else 1)
        for name, weight in packed.items()
        if not name.endswith(".scale")
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


def store(folder: Path, student: Student, out: Path, int8: bool) -> None:
    """Write the model's folder."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, out / name)
    weights = {n: p.detach() for n, p in student.named_parameters()}
    dense = {
        "linear.weight": weights.pop("projection.weight"),
        "linear.bias": weights.pop("projection.bias"),
    }
    save_file(pack(weights, int8), out / "model.safetensors", {"format": "pt"})
    (out / "2_Dense").mkdir(exist_ok=True)
    save_file(
        {n: w.float().contiguous() for n, w in dense.items()}, out / "2_Dense/model.safetensors"
    )
    config = {**student.config, "architectures": ["LlamaModel"], "dtype": "bfloat16"}
    if not student.causal:
        config["is_causal"] = False
    write_json(out / "config.json", config)
    width, inner = dense["linear.weight"].shape
    activation = "torch.nn.modules.linear.Identity"
    shape = {"in_features": inner, "out_features": width, "bias": True}
    write_json(out / "2_Dense/config.json", {**shape, "activation_function": activation})
    pooling = {"word_embedding_dimension": inner, "pooling_mode_mean_tokens": True}
    write_json(out / "1_Pooling/config.json", pooling)
    names = (
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Normalize", "Normalize"),
    )
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": TYPES + kind}
        for n, (path, kind) in enumerate(names)
    ]
    (out / "3_Normalize").mkdir(exist_ok=True)
    write_json(out / "modules.json", modules)
    write_json(
        out / "sentence_bert_config.json",
        {"max_seq_length": 2 * MAX_TOKENS, "do_lower_case": False},
    )
    settings = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    write_json(out / "config_sentence_transformers.json", settings)


def main() -> None:
    """Write the folder and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="folder of prune.py")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--weights", choices=("average", "master"), default="average")
    parser.add_argument("--int8", action="store_true")
    args = parser.parse_args()
    store(
        args.model, open_checkpoint(args.model, args.checkpoint, args.weights), args.out, args.int8
    )
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
