"""Versions: of what is installed, of what is not, and of this package from its sources alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy

import embedlm
from embedlm.jobs.software import versions

ROOT = Path(__file__).parents[2]


def test_versions_are_those_of_the_distributions() -> None:
    found = versions("numpy", "no-such-distribution")
    assert found == {"numpy": numpy.__version__, "no-such-distribution": "missing"}


def test_the_package_and_its_project_file_tell_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == embedlm.__version__


def test_sources_that_nobody_installed_know_their_version(tmp_path: Path) -> None:
    (tmp_path / "embedlm").symlink_to(ROOT / "src" / "embedlm")
    code = (
        "import importlib.metadata as m, sys\n"
        "find = m.distribution\n"
        "def hidden(name):\n"
        "    if name == 'embedlm': raise m.PackageNotFoundError(name)\n"
        "    return find(name)\n"
        "m.distribution = hidden\n"
        "import embedlm\n"
        "from embedlm.encode.identity import identity\n"
        "print(identity(embedlm.load(), with_head=False)['software']['embedlm'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [embedlm.__version__]
