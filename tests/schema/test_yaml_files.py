"""YAML that nobody writes by hand is refused in our words, at once and without much memory."""

import subprocess
import sys
import time
from itertools import pairwise

import pytest

from embedlm.errors import RecipeError
from embedlm.schema.recipe import Recipe
from embedlm.schema.yaml_files import MAX_BYTES, parse_yaml
from embedlm.training.plan import load_plan

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghi")
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))
MERGES = "a: &a {k: 1, l: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in pairwise("abcdefghi")
)
HOSTILE = {
    "alias bomb": (BOMB, "once its aliases are filled in"),
    "chain of aliases": (CHAIN, "once its aliases are filled in"),
    "merge bomb": (MERGES, "once its aliases are filled in"),
    "self": ("prompt: &p {roles: {x: *p}}", r"\*p refers to a value that it is part of"),
    "brackets": ("notes: " + "[" * 3000 + "]" * 3000, "line 1.*more than 40 lists"),
    "braces": ("notes: " + "{a: " * 3000 + "}" * 3000, "more than 40 lists"),
    "indentation": ("".join(" " * n + "a:\n" for n in range(700)), "more than 40 lists"),
    "duplicate key": ("name: a\nnormalize: true\nname: b\n", "line 3.*'name' stands here twice"),
    "inner duplicate": ("pooling: {kind: last, kind: mean}", "'kind' stands here twice"),
    "long number": ("notes: " + "9" * 200_000, "a number of 200000 characters"),
    "long sexagesimal": ("notes: 1" + ":30" * 60_000, "a number of"),
    "no date": ("paper: 2024-13-45", "not valid YAML: month must be"),
    "too large": ("notes: " + "x" * MAX_BYTES, "larger than 256 KB"),
    "a path": ("name: ../../x", "name: .*(full stop|not a path)"),
    "an absolute path": ("name: /etc/x", "not a path"),
    "a Windows path": (r"name: a\b", "not a path"),
    "a control sign": ('name: "a\\0b"', "printable"),
    "no name": ('name: ""', "1 to 200"),
}
hostile = pytest.mark.parametrize(("text", "told"), HOSTILE.values(), ids=list(HOSTILE))


@hostile
@pytest.mark.parametrize("load", [Recipe.load, load_plan], ids=["recipe", "plan"])
def test_hostile_yaml_is_refused_at_once(tmp_path, load, text, told):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(RecipeError, match=told) as caught:
        load(path)
    assert time.process_time() - start < 1
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", ["alias bomb", "brackets", "long number"])
def test_hostile_yaml_costs_little_memory(tmp_path, name):
    """In a process of its own, as a process of tests is larger by itself."""
    path = tmp_path / "mine.yaml"
    path.write_text(HOSTILE[name][0])
    code = (
        "from embedlm.errors import RecipeError\nfrom embedlm.schema.recipe import Recipe\n"
        f"try: Recipe.load({str(path)!r})\nexcept RecipeError: pass\nelse: raise SystemExit(1)\n"
        "print(open('/proc/self/status').read())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (peak,) = (line for line in done.stdout.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) * 1024 < 200 * 2**20


def test_a_stage_and_a_method_are_no_paths_either():
    stage = {"name": "../x", "objective": [{"kind": "info_nce"}]}
    with pytest.raises(RecipeError, match=r"stages\.0\.name: "):
        load_plan({"recipe": "plain-mean", "stages": [stage]})


def test_yaml_that_people_write_is_read():
    text = "shared: &s {size: 3}\none: *s\ntwo: {<<: *s, size: 4, more: [1, 2.5, 'x', null]}\n"
    assert parse_yaml(text, "x") == {
        "shared": {"size": 3},
        "one": {"size": 3},
        "two": {"size": 4, "more": [1, 2.5, "x", None]},
    }
    nested = "[" * 30 + "]" * 30
    assert parse_yaml(nested, "x") is not None
    assert parse_yaml("", "x") is None
