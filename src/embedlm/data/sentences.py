"""Where sentences end, in scripts of all kinds."""

from __future__ import annotations

__all__ = ["SENTENCE_GAP"]

_WIDE = "。！？｡．"
"""End a sentence without a blank after them."""
_CLOSING = "」』”’）】》〉〕］"
_THAI, _LAO = r"\u0e01-\u0e45\u0e47-\u0e4e", r"\u0e81-\u0ec4\u0ec8-\u0ecd"
"""Without the signs that repeat a word (Thai ๆ, Lao ໆ), which stand between blanks."""
_BARS, _OTHERS = "।॥။។", "؟۔։።፧"
_ON = rf"(?![{_WIDE}{_CLOSING}]|\Z)"
"""Not before another end, nor at the end of all."""
_WAYS = (
    r"(?<=[.!?])\s+",
    rf"(?<=[{_WIDE}])(?<![0-9０-９]．(?=[0-9０-９])){_ON}",
    *(rf"(?<=[{_WIDE}]{f'[{_CLOSING}]' * closed})(?!と){_ON}" for closed in (1, 2)),
    rf"(?<=[{_BARS}])\s*(?!\s|[{_BARS}]|\Z)",
    rf"(?<=[{_OTHERS}])\s+",
    rf"(?<=[{_THAI}]) +(?=[{_THAI}])",
    rf"(?<=[{_LAO}]) +(?=[{_LAO}])",
)
SENTENCE_GAP = rf"(?<=[.!?{_WIDE}{_CLOSING}{_BARS}{_OTHERS}{_THAI}{_LAO}])(?:{'|'.join(_WAYS)})"
"""Matches between two sentences: the blanks there, or nothing where none are written.

A quotation that ends stays with its sentence, and goes on after it where Japanese says so (と).
Thai and Lao have no marks at the end of a sentence: there a blank ends a clause. The first part is
for speed alone.
"""
