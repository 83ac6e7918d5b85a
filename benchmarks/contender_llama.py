"""llama.cpp as a contender of encode.py, in an interpreter that has llama-cpp-python and gguf.

python benchmarks/contender_llama.py --folder MODEL --work WORK.json --out VECTORS.npy --type bf16

The same weights are written as GGUF once, beside the model; the same token ids are run, with mean
or last-token pooling inside llama.cpp, without a key-value cache between texts. Only Qwen3's shape
is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TOKENS = 2048
"""Of a batch."""
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TYPES = {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def tensors(folder: Path) -> Any:
    """Yield the names and float32 values of a checkpoint in bfloat16."""
    file = folder / "model.safetensors"
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
    data = np.memmap(file, dtype=np.uint8, mode="r", offset=8 + size)
    header.pop("__metadata__", None)
    for name, fact in header.items():
        assert fact["dtype"] == "BF16", fact["dtype"]
        start, end = fact["data_offsets"]
        half = data[start:end].view(np.uint16).astype(np.uint32) << 16
        yield name.removeprefix("model."), half.view(np.float32).reshape(fact["shape"])


def gguf_name(name: str) -> str:
    """Return what llama.cpp calls a tensor."""
    outer = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    if name in outer:
        return outer[name]
    _, number, part = name.split(".", 2)
    return f"blk.{number}.{PARTS[part.removesuffix('.weight')]}.weight"


def convert(folder: Path, kind: str) -> Path:
    """Write the model as GGUF; return the file."""
    file = folder.parent / f"model-{kind}.gguf"
    if file.is_file():
        return file
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file.with_suffix(".part"), "qwen3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())["model"]
    names = {number: name for name, number in tokenizer["vocab"].items()}
    every = [names.get(i, f"<unused {i}>") for i in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(every)
    writer.add_token_types([1 if i in names else 5 for i in range(len(every))])
    writer.add_token_merges(
        [one if isinstance(one, str) else " ".join(one) for one in tokenizer["merges"]]
    )
    for name, value in tensors(folder):
        if value.ndim == 1:
            writer.add_tensor(gguf_name(name), value)
        else:
            data = gguf.quants.quantize(value, TYPES[kind])
            writer.add_tensor(gguf_name(name), data, raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file.with_suffix(".part").rename(file)
    return file


def main() -> None:
    """Do as contender.py does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--type", choices=list(TYPES), required=True)
    args, _ = parser.parse_known_args()
    work = json.loads(args.work.read_text(encoding="utf-8"))
    file = convert(args.folder, args.type)
    import llama_cpp

    pooling = {
        "mean": llama_cpp.LLAMA_POOLING_TYPE_MEAN,
        "lasttoken": llama_cpp.LLAMA_POOLING_TYPE_LAST,
    }
    model = llama_cpp.Llama(
        str(file),
        embedding=True,
        pooling_type=pooling[work["pooling"]],
        n_ctx=TOKENS,
        n_batch=TOKENS,
        n_ubatch=TOKENS,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    ids = [row for rows in work["ids"] for row in rows]
    numbers = [str(number) for number in range(len(ids))]
    model.tokenize = lambda text, *a, **k: ids[int(text)]  # the same ids as the others run
    order = sorted(numbers, key=lambda number: len(ids[int(number)]))
    model.embed(order[:8])
    print("ready", flush=True)
    vectors = np.zeros((len(ids), model.n_embd()), np.float32)
    for _ in sys.stdin:
        start = time.perf_counter()
        found = model.embed(order)
        print(time.perf_counter() - start, flush=True)
        vectors[[int(number) for number in order]] = found
    np.save(args.out, vectors.reshape(len(work["ids"]), -1, vectors.shape[1]).mean(1))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(float(status["VmHWM"].split()[0]) / 1024)


if __name__ == "__main__":
    main()
