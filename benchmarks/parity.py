"""The largest difference to each reference implementation's output.

EMBEDLM_PARITY=path/to/parity python benchmarks/parity.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import embedlm

FAMILY = {
    "PromptEOL": "prompteol",
    "zbw_PromptSTH": "promptsth",
    "zbw_PromptSUM": "promptsum",
    "zbw_Pretended_CoT": "pretended-cot",
    "zbw_Knowledge_Enhancement": "knowledge-enhancement",
    "no_template_last": "plain-last",
    "no_template_avg_unbatched": "plain-mean",
}
CASES: list[tuple[str, str, str | None, dict[str, Any]]] = [
    ("02_sgpt_gpt2", "embedding", None, {}),
    ("02_sgpt_gptneo", "embedding", None, {}),
    *(("09_prompteol_opt", array, recipe, {}) for array, recipe in FAMILY.items()),
    *(("09_prompteol_lm2", array, recipe, {}) for array, recipe in FAMILY.items()),
    ("10_metaeol", "metaeol", "metaeol", {}),
    ("11_echo", "query_mean", "echo", {"role": "query"}),
    ("11_echo", "query_last", "echo-last", {"role": "query"}),
    ("11_echo", "document_mean", "echo", {"role": "document"}),
    ("11_echo", "document_last", "echo-last", {"role": "document"}),
    ("12_promptreps", "dense_query", "promptreps-raw", {"role": "query", "heads": ["dense"]}),
    ("12_promptreps", "dense_passage", "promptreps-raw", {"role": "document", "heads": ["dense"]}),
    ("16_splade", "max_pooling", None, {}),
]


def main() -> None:
    """Print one row an array."""
    root = Path(os.environ["EMBEDLM_PARITY"])
    texts = json.loads((root / "texts.json").read_text())
    print("| case | array | recipe | largest difference | smallest cosine |\n|---|---|---|---|---|")
    for case, array, recipe, options in CASES:
        wanted = np.load(root / case / "expected.npz")[array]
        if case == "11_echo" and options["role"] == "query":
            prompt = json.loads((root / case / "case.json").read_text())["prompt"]
            options = {**options, "instruction": prompt}
        found = embedlm.load(root / case, recipe=recipe).encode(texts, **options)
        vectors = found.sparse.toarray() if hasattr(found, "sparse") else found
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(wanted, axis=1)
        cosine = ((vectors * wanted).sum(1) / np.maximum(norms, 1e-12)).min()
        error = np.abs(vectors - wanted).max()
        print(f"| {case} | {array} | {recipe or 'from the folder'} | {error:.1e} | {cosine:.7f} |")


if __name__ == "__main__":
    main()
