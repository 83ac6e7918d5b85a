"""The house rule on lengths: functions of at most 50 lines, files of at most 400."""

import ast
from pathlib import Path

import embedlm

SOURCE = Path(embedlm.__file__).parent
FUNCTION, FILE = 50, 400
LONGER = {
    "backbone/loading.py:load_backbone",
    "backbone/network.py:run",
    "embedder.py:encode",
    "loader.py:load",
    "search/index.py:__init__",
}
"""Functions that are still longer; a name leaves this list when its function is shortened."""


def functions():
    """Yield the name of every function and how many lines it has, docstring included."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(SOURCE).as_posix()}:{node.name}"
                yield name, node.end_lineno - node.lineno + 1


def test_functions_are_short():
    assert {name for name, lines in functions() if lines > FUNCTION} <= LONGER


def test_files_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert [str(path) for path, lines in lengths.items() if lines > FILE] == []
