"""How a candidate is used: the commands that search by it, and what their index keeps."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from embedlm.data import existing
from embedlm.search.passages import files_of
from embedlm.studies.advise.candidates import Candidate
from embedlm.studies.advise.named import split_model

__all__ = ["commands", "kept_by_an_index"]

INDEX = "corpus.index"


def commands(
    chosen: Candidate, path: str, text_field: str = "text", dtype: str = "auto"
) -> list[str]:
    """Return the commands that index the corpus at a path for a candidate, and search it.

    An index keeps float32 vectors. For others a third command writes the candidate's own vectors.
    """
    read = "" if text_field == "text" else f" --text-field {shlex.quote(text_field)}"
    index = f"embedlm index {shlex.quote(path)}{read} -o {INDEX}"
    search = f'embedlm search {INDEX} "a query" --mode {chosen.mode}'
    if chosen.model is None:
        return [index, search]
    name, recipe = split_model(chosen.model)
    model = f" -m {shlex.quote(name)}" + (f" -r {shlex.quote(recipe)}" if recipe else "")
    model += "" if dtype == "auto" else f" --dtype {dtype}"
    cut = "" if chosen.whole else f" --set dim={chosen.dim}"
    first = " --first-stage binary" if chosen.precision == "binary" else ""
    told = [f"{index}{model}{cut}{first}", search]
    if chosen.precision == "float32":
        return told
    texts, vectors, sample = _encoded(path)
    encode = f"embedlm encode {shlex.quote(texts)}{read}{model} --role document -o {vectors}"
    encode += f" --dim {chosen.dim} --precision {chosen.precision}"
    if chosen.precision == "int8":
        encode += f" --calibration {shlex.quote(sample)}"
    return [*told, encode]


def kept_by_an_index(chosen: Candidate) -> str:
    """Return a sentence on what an index keeps instead of the candidate's vectors; or nothing."""
    if chosen.precision in (None, "float32") or chosen.dim is None:
        return ""
    return (
        f" An index keeps float32 vectors, {4 * chosen.dim:,} bytes a document; the "
        f"last command writes the {chosen.precision} ones, for a store of your own."
    )


def _encoded(path: str) -> tuple[str, str, str]:
    """Return what `embedlm encode` is given, where its vectors go, and texts to set ranges by."""
    root = Path(path)
    if not root.is_dir():
        return path, "vectors.npy", path
    beir = existing(root / "corpus.jsonl")
    if beir is not None:
        return str(beir), "vectors.npy", str(beir)
    return path, "vectors", max(files_of(path), key=os.path.getsize)
