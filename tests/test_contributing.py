"""The steps of CONTRIBUTING.md take what they say and no more: each adds a part that works."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEP = re.compile(
    r'^( *)```\w+ file="(?P<file>[^"]+)"(?: (?P<where>before|after|inside)="(?P<anchor>[^\n]+)")?\n'
    r"(?P<code>.*?)^\1```$",
    re.MULTILINE | re.DOTALL,
)


def apply(step, package):
    """Do what a step says to a copy of the package."""
    file = package.parent / Path(step["file"]).relative_to("src")
    code = textwrap.dedent(step["code"]) if not step["where"] else step["code"]
    if step["where"] is None:
        file.write_text(code)
        return
    indent = len(step[1])
    code = "".join(line[indent:] or "\n" for line in code.splitlines(keepends=True))
    text, anchor = file.read_text(), step["anchor"]
    assert text.count(anchor) == 1, f"{anchor!r} is not in {file} exactly once"
    start = text.index(anchor)
    if step["where"] == "before":
        gap = "\n\n" if code.startswith(("def ", "class ")) else ""
        text = text[:start] + code + gap + text[start:]
    elif step["where"] == "after":
        end = text.index("\n", start) + 1
        text = text[:end] + code + text[end:]
    else:
        end = start + len(anchor)
        text = text[:end] + code.strip() + " " + text[end:]
    file.write_text(text)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Return a copy of the package with every example of CONTRIBUTING.md in it."""
    source = tmp_path_factory.mktemp("src") / "embedlm"
    skipped = shutil.ignore_patterns("builtin", "__pycache__")
    shutil.copytree(ROOT / "src/embedlm", source, ignore=skipped)
    (source / "builtin").symlink_to(ROOT / "src/embedlm/builtin")
    steps = list(STEP.finditer((ROOT / "CONTRIBUTING.md").read_text()))
    assert len(steps) == 15
    for step in steps:
        apply(step, source)
    return source


SHOWS = {
    "recipe": """
        model = embedlm.load(FOLDER, "one-line")
        assert model.render(["a b"]).text == ['The gist of "a b" in one line:']
    """,
    "pooling": """
        recipe = embedlm.Recipe.load("plain-mean").override({"pooling.kind": "midrange"})
        model = embedlm.load(FOLDER, recipe)
        high, low = (model.with_recipe(recipe.override({"pooling.kind": "max"})), model)
        assert low.encode(["a b c"]).shape == (1, 32)
        assert (low.encode(["a b c"]) <= high.encode(["a b c"]) + 1e-6).all()
    """,
    "head": """
        recipe = embedlm.Recipe.load("plain-mean").override({"heads": ["dense", "length"]})
        model = embedlm.load(FOLDER, recipe)
        texts = ["a", "a b c d", "a"]
        both = model.encode(texts)
        lengths = [len(ids) for ids in model.render(texts).ids]
        assert both["length"]["length"].tolist() == lengths
        assert model.similarity(both, both, heads=["length"])[0].tolist()[::2] == [0, 0]
        hundreds = model.encode(texts, heads=[{"length": {"unit": "hundreds"}}])
        assert hundreds["length"]["length"][0] == lengths[0] / 100
        import pathlib
        from embedlm.bulk import encode_file
        pathlib.Path("in.txt").write_text("a dog")
        try:
            encode_file(model, "in.txt", "out.npz", heads=["length"])
        except embedlm.errors.UnsupportedError as error:
            assert "'length' has no form in files" in str(error)
        else:
            raise AssertionError("a head without a form in files was written")
        model.save_pretrained("saved")
        assert embedlm.load("saved").encode(texts)["length"]["length"].tolist() == lengths
    """,
    "loss": """
        import torch
        q, d = torch.eye(2), torch.eye(2)
        assert embedlm.losses.positive_margin(q, d) == 0
        assert embedlm.losses.positive_margin(q, -d, margin=0.5) == 1.5
    """,
    "objective": """
        import json, pathlib
        rows = [{"query": f"q {i}", "positive": f"d {i}"} for i in range(8)]
        pathlib.Path("pairs.jsonl").write_text("\\n".join(map(json.dumps, rows)))
        stage = {
            "name": "one",
            "objective": [{"kind": "positive_margin", "options": {"margin": 0.9}}],
            "data": [{"source": "pairs.jsonl"}],
            "optimizer": {"steps": 2},
            "batching": {"size": 4},
        }
        plan = {"model": str(FOLDER), "recipe": "plain-mean", "stages": [stage]}
        told = []
        embedlm.train(plan, "out", on_event=lambda kind, values: told.append(values))
        assert any("positive_margin" in values for values in told)
    """,
    "store": """
        from embedlm.search import LoggedStore, Passage, SearchIndex, Store
        store = LoggedStore()
        assert isinstance(store, Store)
        passages = [Passage("a.txt", 1, "red fox"), Passage("a.txt", 2, "a dog")]
        index = SearchIndex(embedlm.load(FOLDER, "plain-mean"), passages, store=store)
        assert index.search("red fox")[0].passage.text == "red fox"
        assert store.searches == 1
    """,
}


@pytest.mark.parametrize("part", SHOWS)
def test_a_part_added_by_the_documented_steps_works(part, package, tiny_llama, tmp_path):
    code = f"import pathlib, embedlm\nFOLDER = pathlib.Path({str(tiny_llama)!r})\n"
    code += textwrap.dedent(SHOWS[part])
    surroundings = {**os.environ, "PYTHONPATH": str(package.parent)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=surroundings, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
