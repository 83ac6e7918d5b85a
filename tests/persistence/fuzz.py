"""Damage one value in one JSON file of a model folder, and see what loading it gives.

What must never happen: an exception that is not EmbedLM's, or vectors that differ without a word
from those that sentence-transformers and transformers give for the very same damaged folder.

    PYTHONPATH=src:. python tests/persistence/fuzz.py 2000
"""

import collections
import contextlib
import io
import json
import logging
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import embedlm
from embedlm.errors import EmbedLMError
from tests.persistence.fuzz_layouts import LAYOUTS, RECIPE

OUTCOMES = ("refused", "as the reference", "as before", "foreign exception", "silent change")
FAULTS = OUTCOMES[3:]
TOLERANCE = 1e-3


# -- damage ------------------------------------------------------------------------------------

ODD = [None, True, False, 0, -1, 1, 3, 2**40, 10**30, 1.5, "", "x", "\ud800", [], [1], {}, {"a": 1}]
RAW = ["", "[]", "3", "{", '{"a": NaN}', "\ufeff{}", '{"a": 1, "a": 2}', "[" * 3000]
OPERATIONS = ("change", "change", "nudge", "nudge", "drop", "add", "swap", "raw")


def json_files(folder):
    """Return the JSON files of a folder, the large one of the tokenizer's vocabulary apart."""
    found = [path for path in folder.rglob("*.json") if path.name != "tokenizer.json"]
    found += folder.glob(RECIPE)
    return sorted(str(path.relative_to(folder)) for path in found)


def _nodes(value):
    """Yield every object and list of a JSON value with what its keys are."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if keys:
            yield value, keys
        for key in keys:
            yield from _nodes(value[key])


def _nudged(value, draw):
    """Return another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw(st.sampled_from([value + 1, value - 1, value * 2, value // 2]))
    if isinstance(value, float):
        return draw(st.sampled_from([value * 2, value / 2, -value, value + 1]))
    if isinstance(value, str):
        return draw(st.sampled_from([value + "x", value[:-1], value.upper(), value + " "]))
    if isinstance(value, list):
        return draw(st.sampled_from([value[:-1], value * 2, value[::-1]]))
    return draw(st.sampled_from(ODD))


@st.composite
def damages(draw, files):
    """Draw a layout, one of its files, what is done to it, and the file's new text.

    Args:
        draw: hypothesis' own.
        files: the text of each JSON file of each layout.
    """
    layout = draw(st.sampled_from(sorted(files)))
    name = draw(st.sampled_from(sorted(files[layout])))
    text = files[layout][name]
    operation = draw(st.sampled_from(OPERATIONS))
    content = json.loads(text)
    nodes = list(_nodes(content))
    if operation == "raw" or not nodes:
        cut = draw(st.integers(0, len(text) - 1))
        return layout, name, "raw", draw(st.sampled_from([*RAW, text[:cut]]))
    node, keys = draw(st.sampled_from(nodes))
    key = draw(st.sampled_from(keys))
    said = f"{operation} {key!r}"
    if operation == "drop":
        del node[key]
    elif operation == "add":
        if isinstance(node, dict):
            node[draw(st.sampled_from(["zz", f"{key}_2"]))] = draw(st.sampled_from(ODD))
        else:
            node.append(draw(st.sampled_from(ODD)))
    elif operation == "swap":
        other = draw(st.sampled_from(keys))
        node[key], node[other] = node[other], node[key]
        said += f" {other!r}"
    else:
        odd = operation == "change"
        node[key] = draw(st.sampled_from(ODD)) if odd else _nudged(node[key], draw)
        said += f" to {node[key]!r}"
    return layout, name, said, json.dumps(content)


# -- what comes of it --------------------------------------------------------------------------


def _same(a, b):
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return False
    close = {"atol": TOLERANCE, "rtol": TOLERANCE, "equal_nan": True}
    return all(np.allclose(x, y, **close) for x, y in zip(a, b, strict=True))


class Folders:
    """A sound folder of each layout, and what it gives."""

    def __init__(self, root, names=tuple(LAYOUTS)):
        self.root = Path(root)
        self.sound, self.files = {}, {}
        for name in names:
            folder = self.root / name / "model"
            folder.parent.mkdir(parents=True)
            LAYOUTS[name].make(folder)
            self.files[name] = {file: (folder / file).read_text() for file in json_files(folder)}
            if (folder / RECIPE).is_file():
                self.recipe = embedlm.Recipe.load(folder)
            self.sound[name] = LAYOUTS[name].outputs(LAYOUTS[name].ours(folder))

    def outcome(self, layout, file, text):
        """Return what loading a damaged folder comes to, and a note."""
        kind, path = LAYOUTS[layout], self.root / layout / "model" / file
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            folder = path.parents[len(Path(file).parts) - 1]
            return self._judged(
                kind, layout, folder, unread=None if file == RECIPE else file in kind.unread
            )
        finally:
            path.write_text(self.files[layout][file])

    def _judged(self, kind, layout, folder, *, unread):
        try:
            ours = kind.outputs(kind.ours(folder))
        except EmbedLMError as error:
            return "refused", str(error)
        except Exception as error:
            return "foreign exception", f"{type(error).__name__}: {error}"
        if unread is None:  # whatever a recipe says is right, if another one is read
            changed = embedlm.Recipe.load(folder) != self.recipe
            same = _same(ours, self.sound[layout])
            return ("as the reference" if changed else "as before" if same else "silent change"), ""
        if unread:
            same = _same(ours, self.sound[layout])
            return ("as before" if same else "silent change"), "a file that is not read"
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                theirs = kind.outputs(kind.theirs(folder))
        except Exception as error:
            same = _same(ours, self.sound[layout])
            note = f"the reference cannot: {type(error).__name__}: {str(error)[:200]}"
            return ("as before" if same else "silent change"), note
        return ("as the reference" if _same(ours, theirs) else "silent change"), ""


def run(count, names=tuple(LAYOUTS), root=None, report=print):
    """Try `count` damages and return how many came to each outcome."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return _run(count, names, root, report)
    finally:
        logging.disable(before)


def _run(count, names, root, report):
    counts = collections.Counter()
    with tempfile.TemporaryDirectory() as own:
        folders = Folders(root or own, names)

        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            derandomize=root is not None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(damages(folders.files))
        def attempt(damage):
            layout, file, said, text = damage
            outcome, note = folders.outcome(layout, file, text)
            counts[layout, outcome] += 1
            if outcome in FAULTS or (outcome == "refused" and report is not print):
                report(f"{outcome}: {layout}/{file}: {said[:200]}: {note[:300]}")

        attempt()
    shutil.rmtree(root, ignore_errors=True) if root else None
    return counts


def table(counts):
    """Return the counts as lines of text."""
    rows = [f"{'':15}" + "".join(f"{name:>19}" for name in OUTCOMES)]
    for layout in dict.fromkeys(layout for layout, _ in counts):
        cells = "".join(f"{counts[layout, name]:>19}" for name in OUTCOMES)
        rows.append(f"{layout:15}{cells}")
    total = "".join(
        f"{sum(n for (_, one), n in counts.items() if one == name):>19}" for name in OUTCOMES
    )
    return "\n".join([*rows, f"{'all':15}{total}"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(run(int(sys.argv[1]), tuple(sys.argv[2:]) or tuple(LAYOUTS))))
