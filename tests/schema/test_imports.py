"""Recipes and plans can be read, checked and listed where torch is not installed."""

import pkgutil
import subprocess
import sys

import pytest

import embedlm.schema

MODULES = [f"embedlm.schema.{one.name}" for one in pkgutil.iter_modules(embedlm.schema.__path__)]
HEAVY = ("torch", "transformers", "tokenizers", "scipy", "peft", "datasets")


@pytest.mark.parametrize("module", ["embedlm", *MODULES])
def test_the_module_imports_nothing_heavy(module):
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
