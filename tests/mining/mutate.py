"""Changes a constant or a comparison of each filter: a test must fail for every one of them.

    python -m tests.mining.mutate

No file is changed: each mutant is read in place of its module by a process of its own.
"""

import contextlib
import importlib.machinery
import io
import os
import sys
from pathlib import Path

import pytest

import embedlm.loader
import embedlm.mining

OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
HOME = Path(embedlm.mining.__file__).parent
MUTANTS = [
    ("filters.py", "rank_K <= (filters.shift or 0)", "rank_K < (filters.shift or 0)", "filters"),
    ("filters.py", '"abs": filters.abs,', '"abs": filters.abs and filters.abs + 0.05,', "filters"),
    ("filters.py", "return positive - margin", "return positive - 1.1 * margin", "filters"),
    ("filters.py", "abs(positive) * (1 - share)", "abs(positive) * (1.02 - share)", "filters"),
    ("filters.py", "abs(positive) * (1 - share)", "positive * (1 - share)", "filters"),
    ("filters.py", "rank_K < first", "rank_K <= first", "filters"),
    ("negatives.py", "float(min(logits)) - margin", "float(min(logits)) - 2 * margin", "mine"),
    ("negatives.py", "least = min([", "least = max([", "mine"),
    ("negatives.py", "rank <= within", "rank < within", "mine"),
    ("negatives.py", "one.flagged > judging.most", "one.flagged >= judging.most", "relabel"),
    ("relabel.py", "MOST = 8", "MOST = 9", "relabel"),
]


def read_mutated(path, old, new):
    """Have the source of a module read with one place changed."""
    source = path.read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{path.name}: {old!r} stands there {source.count(old)} times"
    loader = importlib.machinery.SourceFileLoader
    data, stats = loader.get_data, loader.path_stats

    def get_data(self, name):
        return source.replace(old, new).encode() if Path(name) == path else data(self, name)

    def path_stats(self, name):
        if Path(name) == path:
            raise OSError(name)  # no compiled file is looked for
        return stats(self, name)

    loader.get_data, loader.path_stats = get_data, path_stats
    for name in [name for name in sys.modules if name.startswith("embedlm.mining")]:
        del sys.modules[name]


def survives(mutant):
    """Return whether the tests pass in spite of a mutant."""
    name, old, new, tests = mutant
    child = os.fork()
    if child == 0:
        code = 3
        with contextlib.suppress(BaseException):
            read_mutated(HOME / name, old, new)
            with contextlib.redirect_stdout(io.StringIO()):
                code = int(pytest.main([f"tests/mining/test_{tests}.py", *OPTIONS]))
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), f"the tests of {name} could not be run ({code})"
    return code == 0


def main():
    """Run the tests with each mutant; end with an error where one survives."""
    alive = []
    unchanged = ("filters.py", "rank_K < first", "rank_K < first", "filters")
    assert survives(unchanged), "the tests fail without a change"
    for mutant in MUTANTS:
        left = survives(mutant)
        alive += [mutant] if left else []
        print(
            f"{'ALIVE' if left else 'found'}  {mutant[0]}: {mutant[1]} -> {mutant[2]}", flush=True
        )
    sys.exit(f"{len(alive)} of {len(MUTANTS)} mutants live" if alive else 0)


if __name__ == "__main__":
    main()
