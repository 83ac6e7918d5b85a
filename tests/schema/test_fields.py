"""No field of a schema is dead: each is read somewhere outside the schema itself."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import embedlm.schema
from embedlm.schema.base import Part

SRC = Path(embedlm.__file__).parent
MODULES = [
    importlib.import_module(f"embedlm.schema.{module.name}")
    for module in pkgutil.iter_modules(embedlm.schema.__path__)
]
PARTS = sorted(
    {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Part) and value is not Part
    },
    key=lambda part: part.__qualname__,
)
FIELDS = [(part, name) for part in PARTS for name in part.model_fields]


def names_read(path):
    """Return the attributes that a file reads, and the words that could name one in `getattr`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "getattr"
        ):
            yield from (one.value for one in node.args if isinstance(one, ast.Constant))


READ = {
    name
    for path in SRC.rglob("*.py")
    if "schema" not in path.relative_to(SRC).parts
    for name in names_read(path)
}


def test_every_schema_is_looked_at():
    names = {part.__name__ for part in PARTS}
    assert names >= {"Recipe", "Prompt", "Pooling", "Sparse", "Stage", "Plan", "Dev", "Method"}


@pytest.mark.parametrize(("part", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_the_field_is_read(part, name):
    assert name in READ, f"nothing outside embedlm.schema reads {part.__name__}.{name}"
