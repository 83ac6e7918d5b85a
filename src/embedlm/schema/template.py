"""The grammar of templates: literals, and slots that a text, an image, ... go into."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from embedlm.errors import TemplateError, closest

__all__ = [
    "DEMONSTRATION_SLOTS",
    "OPTIONAL_SLOTS",
    "SLOTS",
    "Piece",
    "escape",
    "fill",
    "parse_template",
]

SLOTS = ("text", "image", "instruction", "demonstrations", "eos", "bos", "mask")
OPTIONAL_SLOTS = ("image", "instruction", "demonstrations")
"""Slots whose emptiness can drop a block of the template."""
DEMONSTRATION_SLOTS = ("instruct", "query", "response")
"""Slots of the template of one demonstration."""
_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")


def escape(text: str) -> str:
    """Return a text as it is written in a template, its braces doubled."""
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a template: a literal or a slot, maybe inside an optional block."""

    kind: str
    """`literal` or one of SLOTS."""
    value: str = ""
    """The literal's text."""
    block: int = 0
    """0, or the number of the optional block that the piece stands in."""
    when: str = ""
    """The slot whose emptiness drops the block."""


@lru_cache(maxsize=256)
def parse_template(template: str) -> tuple[Piece, ...]:
    """Return the pieces of a template such as `Query: {text}{eos}`.

    `{{` and `}}` are braces. `{?instruction}...{/instruction}` is left out where the instruction is
    empty; the same holds for demonstrations and an image.

    Raises:
        TemplateError: an unknown slot, a lone brace, an open block, or neither `{text}` nor
            `{image}`.
    """
    pieces = tuple(_merge(_scan(template)))
    if not any(piece.kind in ("text", "image") for piece in pieces):
        raise TemplateError(f"the template {template!r} has no {{text}}: say where the text goes")
    return pieces


def _scan(template: str) -> Iterator[Piece]:
    position, block, when = 0, 0, ""
    blocks = 0
    for match in _TOKEN.finditer(template):
        if match.start() > position:
            yield Piece("literal", template[position : match.start()], block, when)
        position = match.end()
        mark = match.group()
        if mark in ("{{", "}}"):
            yield Piece("literal", mark[0], block, when)
        elif mark in "{}":
            raise TemplateError(
                f"a lone {mark!r} in the template {template!r}: write {mark * 2!r} for a brace"
            )
        elif mark.startswith("{?"):
            when = _opened(mark, block, template)
            blocks += 1
            block = blocks
        elif mark.startswith("{/"):
            if not block or mark[2:-1] != when:
                raise TemplateError(f"{mark} closes nothing in the template {template!r}")
            block, when = 0, ""
        else:
            yield Piece(_slot(mark[1:-1], SLOTS, template), "", block, when)
    if block:
        raise TemplateError(f"{{?{when}}} is not closed by {{/{when}}} in {template!r}")
    if position < len(template):
        yield Piece("literal", template[position:])


def _opened(mark: str, block: int, template: str) -> str:
    if block:
        raise TemplateError(f"{mark} stands inside another block in {template!r}")
    return _slot(mark[2:-1], OPTIONAL_SLOTS, template)


def _slot(name: str, allowed: tuple[str, ...], template: str) -> str:
    if name not in allowed:
        raise TemplateError(
            f"{{{name}}} is not a slot of a template; allowed here: "
            f"{', '.join('{' + slot + '}' for slot in allowed)}.{closest(name, list(allowed))} "
            f"(template {template!r}; write {{{{ and }}}} for braces)"
        )
    return name


def _merge(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Join neighbouring literals of one block."""
    last: Piece | None = None
    for piece in pieces:
        if last and last.kind == piece.kind == "literal" and last.block == piece.block:
            last = Piece("literal", last.value + piece.value, piece.block, piece.when)
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


def fill(template: str, values: dict[str, str], allowed: tuple[str, ...]) -> str:
    """Return a template with its slots filled.

    Args:
        template: without optional blocks, such as the template of one demonstration.
        values: what goes into the slots; a slot without a value stays empty.
        allowed: names of the slots.

    Raises:
        TemplateError: a slot that is not allowed.
    """

    def value(match: re.Match[str]) -> str:
        mark = match.group()
        if mark in ("{{", "}}"):
            return mark[0]
        return str(values.get(_slot(mark.strip("{}"), allowed, template), ""))

    return _TOKEN.sub(value, template)
