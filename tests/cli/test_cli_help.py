"""Help at 80 columns, examples that can be pasted, and ways to start the command line."""

import os
import re
import shlex
import subprocess
import sys

import pytest

import embedlm
from embedlm.cli._app import COMMANDS, PANELS, app
from tests.command import ROOT

WITHIN = [
    [group, name]
    for group in ("index", "data", "recipes")
    for name in app[group]
    if "-" not in name
]
PAGES = [[], *([name] for name in COMMANDS), *WITHIN]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def page(words, capsys):
    app([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_fits_80_columns_and_shows_no_type_for_a_value(words, capsys):
    text = page(words, capsys)
    assert max(map(len, text.splitlines())) <= 80
    if words:
        assert not re.search(r"--[a-z-]+ (-\w )?(STR|INT|PATH|FLOAT)\b", text)


def test_the_overview_shows_each_command_once_under_what_it_is_for(capsys):
    panels = re.findall(r"^╭─ (.*?) ─+╮\n(.*?)^╰", page([], capsys), re.M | re.S)
    shown = {name: re.findall(r"^│ (\w[\w-]*)  ", text, re.M) for name, text in panels}
    assert [*shown][-1] == "Options"
    assert {name: sorted(names) for name, names in shown.items() if names} == {
        name: sorted(getattr(one, "NAME", "") or one.app.name[0] for one in modules)
        for name, modules in PANELS.items()
    }
    assert sorted(name for names in shown.values() for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_the_usage_names_each_argument_and_required_option(words, capsys):
    usage, _, text = page(words, capsys).partition("\n\n")
    assert usage.startswith(" ".join(["Usage: embedlm", *words]))
    arguments = re.search(r"^╭─ Arguments .*?^╰", text, re.M | re.S)
    names = re.findall(r"^│ (?:\*  | {3})?([A-Z_]+)  ", arguments[0], re.M) if arguments else []
    required = re.findall(r"^│ \*  (--[a-z-]+)", text, re.M)
    assert [name for name in [*names, *required] if name not in usage] == []
    assert bool(arguments) == bool(names)
    assert "ARGS" not in usage


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_no_line_below_the_options_is_broken_anew_and_no_empty_value_is_shown(
    words, capsys, monkeypatch
):
    narrow = page(words, capsys)
    monkeypatch.setenv("COLUMNS", "200")
    assert page(words, capsys).rpartition("╯")[2] == narrow.rpartition("╯")[2]
    assert "[default: ()]" not in narrow


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_examples_can_be_pasted(words, capsys):
    examples = page(words, capsys).partition("Examples:\n")[2].replace("\\\n", "")
    lines = [line for line in examples.splitlines() if line.startswith("  ")]
    assert lines
    for line in lines:
        assert not re.search(r"\b(FOLDER|MODEL|FILE)\b", line)
        command = line.partition(" | ")[2] or line
        name, *arguments = shlex.split(command.partition(" > ")[0])
        assert name == "embedlm"
        app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_python_m_embedlm_is_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "embedlm", "--version"], capture_output=True, cwd=ROOT, check=True
    )
    assert done.stdout.decode() == f"{embedlm.__version__}\n"


def test_completion_is_installed(tmp_path):
    home = {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    done = subprocess.run(
        [sys.executable, "-m", "embedlm", "--install-completion", "--shell", "bash"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, **home},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    scripts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("encode" in script and "similarity" in script for script in scripts)
