"""The house rule on lengths: functions of at most 50 lines beside the docstring, files of 400."""

import ast
from pathlib import Path

import embedlm

SOURCE = Path(embedlm.__file__).parent
FUNCTION, FILE = 50, 400


def functions():
    """Yield the name of every function and how many lines it has, the docstring left out."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(SOURCE).as_posix()}:{node.name}"
                first = node.body[0]
                told = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
                yield name, node.end_lineno - node.lineno + 1 - told


def test_functions_are_short():
    assert [name for name, lines in functions() if lines > FUNCTION] == []


def test_files_are_short():
    lengths = {path: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert [str(path) for path, lines in lengths.items() if lines > FILE] == []
