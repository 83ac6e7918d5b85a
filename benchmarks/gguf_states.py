"""EmbedLM against llama.cpp on one GGUF file: the same tokens, and the states of the last ones.

    npm install node-llama-cpp          # once, in a folder of its own: llama.cpp as a package
    python benchmarks/gguf_states.py MODEL.gguf TEXTS.txt --node FOLDER

Prints for how many texts the tokens are equal, and the smallest and the median cosine. llama.cpp
multiplies quantised blocks with activations rounded to 8 bits, so that cosines stay below 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import embedlm

SCRIPT = """
import {readFileSync, writeFileSync} from "node:fs";
import {getLlama} from "node-llama-cpp";
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: process.argv[2]});
const context = await model.createEmbeddingContext({contextSize: 2048});
const rows = [];
for (const text of JSON.parse(readFileSync(process.argv[3], "utf8"))) {
    const embedding = await context.getEmbeddingFor(text);
    rows.push({tokens: model.tokenize(text), vector: Array.from(embedding.vector)});
}
writeFileSync(process.argv[4], JSON.stringify(rows));  // a pipe would be cut at the exit
process.exit(0);
"""


def of_llama_cpp(model: Path, texts: list[str], node: Path) -> list[dict[str, list[float]]]:
    """Return each text's tokens and the state of its last token by llama.cpp."""
    with tempfile.TemporaryDirectory(dir=node) as folder:
        script, listing, states = (
            Path(folder) / name for name in ("e.mjs", "texts.json", "s.json")
        )
        script.write_text(SCRIPT, encoding="utf-8")
        listing.write_text(json.dumps(texts), encoding="utf-8")
        command = ["node", str(script), str(model.resolve()), str(listing), str(states)]
        subprocess.run(command, capture_output=True, check=True, cwd=node)
        rows: list[dict[str, list[float]]] = json.loads(states.read_text(encoding="utf-8"))
    return rows


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, help="one text a line")
    parser.add_argument("--node", type=Path, required=True, help="folder of node_modules")
    parser.add_argument("--count", type=int, default=100, help="texts at most")
    args = parser.parse_args()
    lines = args.texts.read_text(encoding="utf-8").splitlines()
    texts = [line for line in lines if line.strip()][: args.count]
    rows = of_llama_cpp(args.model, texts, args.node)
    model = embedlm.load(args.model, "plain-last", dtype="float32")
    ours = model.encode(texts)
    theirs = np.array([row["vector"] for row in rows], dtype=np.float32)
    same = sum(
        model.tokenizer(t).input_ids == r["tokens"] for t, r in zip(texts, rows, strict=True)
    )
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(1) / lengths
    print(f"{len(texts)} texts; tokens equal for {same}")
    print(f"cosine: smallest {cosines.min():.5f}, median {np.median(cosines):.5f}")


if __name__ == "__main__":
    main()
