"""What the package imports is what pyproject.toml names: in the core, or in an extra."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "pyyaml": "yaml",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "llama-index-core": "llama_index",
    "haystack-ai": "haystack",
    "qdrant-edge-py": "qdrant_edge",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
"""How a distribution is imported, where its name does not say."""
NOT_SHIPPED = ("dev", "all")
TAKEN_BY = {"httptools": "uvicorn", "uvloop": "uvicorn"}
"""What another module imports where it is installed, and is faster with."""


def module_of(requirement):
    name = requirement.split(";")[0].split(">")[0].split("=")[0].split("[")[0].strip()
    return MODULES.get(name, name.replace("-", "_")).split(".")[0]


CORE = {module_of(one) for one in PROJECT["dependencies"]}
EXTRAS = {
    name: {module_of(one) for one in every if not one.startswith("embedlm[")}
    for name, every in PROJECT["optional-dependencies"].items()
    if name not in NOT_SHIPPED
}


def imported(tree):
    """Yield (module, extra) of each import; the extra where `require` names one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, None
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id != "require" or len(node.args) != 2:
                continue
            module, extra = node.args
            if isinstance(module, ast.Constant):
                yield module.value, extra.value
            else:  # chosen among names that the file writes
                yield from ((word, extra.value) for word in words_of(tree, EXTRAS[extra.value]))


def words_of(tree, modules):
    """Yield the strings of a file that name one of these modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and str(node.value).split(".")[0] in modules:
            yield node.value


IMPORTS = {
    (module.split(".")[0], extra)
    for path in (ROOT / "src").rglob("*.py")
    for module, extra in imported(ast.parse(path.read_text(encoding="utf-8")))
}


def test_every_import_is_of_the_core_or_of_the_extra_it_names():
    own = {"embedlm", *sys.stdlib_module_names}
    everywhere = CORE.union(*EXTRAS.values())
    for module, extra in sorted(IMPORTS, key=str):
        if module in own:
            continue
        if extra is None:
            assert module in everywhere, f"{module} is imported and in no list of pyproject.toml"
        else:
            assert module in EXTRAS[extra], f"extra {extra!r} does not bring {module}"


def test_the_core_is_imported():
    assert {module for module, _ in IMPORTS} >= CORE


def test_the_quick_start_lists_every_extra():
    table = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8").split("## Extras")[1]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == {*EXTRAS, "all"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_only_what_is_imported(extra):
    modules = {module for module, _ in IMPORTS}
    assert {TAKEN_BY.get(module, module) for module in EXTRAS[extra]} <= modules


def test_all_is_all():
    (every,) = PROJECT["optional-dependencies"]["all"]
    assert set(every.partition("[")[2].rstrip("]").split(",")) == set(EXTRAS)
