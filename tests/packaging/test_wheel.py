"""What a user gets from the wheel is what the checkout has: files, vectors, the quick start."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from embedlm import loader
from embedlm.backbone import builtin
from embedlm.errors import ModelError
from tests.readme import quick_start, without_digits

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
TEXTS = ["A man is riding a horse.", "The bank raised its interest rates."]
ENCODE = (
    "import sys, numpy, embedlm\n"
    "numpy.save(sys.argv[1], embedlm.load(device='cpu').encode(sys.argv[2:]))\n"
    "print(embedlm.__file__)\n"
)


def python(executable, *arguments, folder, **variables):
    """Run Python in a folder without the checkout on its path; return what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(executable), *map(str, arguments)],
        cwd=folder,
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Build the source archive and, from it, the wheel."""
    absent = [name for name in ("build", "hatchling") if find_spec(name) is None]
    if absent:
        pytest.skip(f"{absent[0]} builds the wheel and is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    python(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ".", folder=ROOT)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """Install the wheel into an empty environment that finds our dependencies after itself."""
    root = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(root, with_pip=False, symlinks=os.name != "nt")
    variables = {"base": str(root), "platbase": str(root)}
    interpreter = Path(sysconfig.get_path("scripts", vars=variables)) / "python"
    pip = ("-m", "pip", "--python", interpreter, "install", "--quiet", "--no-deps", "--no-index")
    python(sys.executable, *pip, archives[0], folder=root)
    # A plain line adds the folder alone: the editable install there does not count.
    packages = Path(sysconfig.get_path("purelib", vars=variables))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def tracked():
    """The files of the package, as version control has them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "src/embedlm"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so which files belong to the package is not known")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return {Path(name).relative_to("src").as_posix() for name in names}


def test_every_file_of_the_package_is_in_the_wheel_and_in_the_source_archive(archives):
    wheel, archive = archives
    files = tracked()
    assert {Path(name).suffix for name in files} >= {".py", ".yaml", ".jsonl", ".safetensors"}
    with zipfile.ZipFile(wheel) as packed:
        assert files <= set(packed.namelist())
    with tarfile.open(archive) as packed:
        names = {name.split("/", 1)[-1] for name in packed.getnames()}
    assert {f"src/{name}" for name in files} <= names


def test_the_wheel_gives_the_vectors_of_the_checkout(installed, tmp_path):
    module = Path(python(installed, "-c", ENCODE, "wheel.npy", *TEXTS, folder=tmp_path).strip())
    assert module.is_relative_to(installed.parents[1])
    checkout = python(
        sys.executable, "-c", ENCODE, "here.npy", *TEXTS, folder=tmp_path, PYTHONPATH=str(SOURCE)
    )
    assert Path(checkout.strip()).is_relative_to(SOURCE)
    wheel, here = np.load(tmp_path / "wheel.npy"), np.load(tmp_path / "here.npy")
    np.testing.assert_allclose(wheel, here, atol=1e-6)


def test_the_quick_start_runs_from_the_wheel(installed, tmp_path):
    code, shown = quick_start()
    printed = python(installed, "-c", code, folder=tmp_path)
    assert without_digits(printed) == without_digits(shown)


@pytest.mark.parametrize(("name", "folder"), [("builtin", "tuned"), ("builtin-base", "base")])
def test_a_missing_built_in_model_is_an_error(name, folder, tmp_path, monkeypatch):
    """Each time the other model is there, which must not take its place."""
    monkeypatch.setitem(builtin.BUILTIN, name, tmp_path / folder)
    with pytest.raises(ModelError, match=rf"built-in model '{name}' lacks .*{folder}.*reinstall"):
        loader.load(name, device="cpu")
