"""Documents whose sections tell of different things, so that queries find their passages."""

import random

import pytest

THINGS = """river mountain bridge fox dog winter summer engine music theory paint cities trade grain
iron copper harbour lantern valley orchard saddle compass anchor candle violin hammer barrel"""
DEEDS = """carries crosses repairs follows lights measures guards paints divides
weighs""".split()  # noqa: SIM905


def sentence(rng, things):
    """Return a sentence about some things."""
    a, b, c = (rng.choice(things) for _ in range(3))
    deed = rng.choice(DEEDS)
    return f"The {a} {deed} the {b} when the old {c} is near the {rng.choice(things)}."


def write_documents(folder, count=12, seed=0):
    """Write pages with a title and two sections each; return the folder."""
    rng, names = random.Random(seed), THINGS.split()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        own = rng.sample(names, 8)
        parts = [f"# The {own[0]} and the {own[1]} of {own[2]}"]
        for half in (own[:5], own[3:]):
            parts.append(f"## How a {half[0]} meets the {half[1]}")
            parts.append(" ".join(sentence(rng, half) for _ in range(4)))
        (folder / f"page{number}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def documents(tmp_path):
    """Return a folder of twelve pages."""
    return write_documents(tmp_path / "documents")
