"""The quick start of the README: its code, and what it says the code prints."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.compile(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", re.MULTILINE | re.DOTALL)


def quick_start():
    """Return the code and the output shown below it."""
    return BLOCKS.search(README.read_text(encoding="utf-8")).groups()


def without_digits(output):
    """Mask the scores: their digits depend on the machine and on the model's training."""
    return re.sub(r"-?\d\.\d\d", "N", output)
