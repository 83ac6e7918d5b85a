"""A template is a list of pieces: literals and the slots a text, an instruction, ... go into."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError, TemplateError, closest

if TYPE_CHECKING:
    from embedlm.schema.recipe import Message, Prompt

__all__ = [
    "SLOTS",
    "Piece",
    "check_prompt",
    "clean_text",
    "escape",
    "fill",
    "join_blocks",
    "parse_template",
    "spell",
    "spell_demonstrations",
    "strip_row",
]

SLOTS = ("text", "instruction", "demonstrations", "eos", "bos", "mask")
_OPTIONAL = ("instruction", "demonstrations")
_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")


def escape(text: str) -> str:
    """Return a text as it is written in a template, its braces doubled."""
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a template: a literal or a slot, maybe inside an optional block."""

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
    empty; so with demonstrations.

    Raises:
        TemplateError: an unknown slot, a lone brace, an open block, or no `{text}`.
    """
    pieces = tuple(_merge(_scan(template)))
    if not any(piece.kind == "text" for piece in pieces):
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
    return _slot(mark[2:-1], _OPTIONAL, template)


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
    """Fill a template of plain names, such as one demonstration's."""

    def value(match: re.Match[str]) -> str:
        mark = match.group()
        if mark in ("{{", "}}"):
            return mark[0]
        return str(values.get(_slot(mark.strip("{}"), allowed, template), ""))

    return _TOKEN.sub(value, template)


def check_prompt(prompt: Prompt) -> None:
    """Raise TemplateError for a template of the prompt that cannot be rendered."""
    from embedlm.schema.recipe import Message

    given: dict[str, Any] = {
        "default": prompt.default,
        "query": prompt.query,
        "document": prompt.document,
        **prompt.roles,
    }
    for template in given.values():
        if template is None:
            continue
        if isinstance(template, str):
            parse_template(template)
        elif not template:
            raise TemplateError("a list of templates is empty: give at least one")
        elif isinstance(template[0], Message):
            parse_template("".join(message.content for message in template))
        else:
            for one in template:
                parse_template(one)
    if prompt.demonstration is not None:
        fill(prompt.demonstration, {}, DEMONSTRATION_SLOTS)


DEMONSTRATION_SLOTS = ("instruct", "query", "response")


def spell_demonstrations(prompt: Prompt, given: tuple[dict[str, str], ...] | None) -> str:
    """Return what {demonstrations} stands for: the call's own, else the recipe's."""
    shots = prompt.demonstrations if given is None else given
    if not shots:
        return ""
    if prompt.demonstration is None:
        raise InputError(
            "demonstrations were given, but the recipe has no prompt.demonstration template"
        )
    for shot in shots:
        unknown = [key for key in shot if key not in DEMONSTRATION_SLOTS]
        if unknown:
            raise InputError(
                f"a demonstration has the field {unknown[0]!r}; allowed: "
                f"{', '.join(DEMONSTRATION_SLOTS)}"
            )
    filled = (fill(prompt.demonstration, dict(shot), DEMONSTRATION_SLOTS) for shot in shots)
    return "".join(one + prompt.separator for one in filled)


def _clean_promptbert(text: str) -> str:
    """Add a full stop where the sentence ends in none of . ? " ' (kongds/Prompt-BERT)."""
    return text if text[-1:] in (".", "?", '"', "'") else text + "."


def _clean_prompteol(text: str) -> str:
    """Clean as kongds/scaling_sentemb: full stop, quotes to apostrophes, final ? to a full stop."""
    text = _clean_promptbert(text).replace('"', "'")
    return text[:-1] + "." if text.endswith("?") else text


_CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "strip": str.strip,
    "strip_all": str.strip,
    "promptbert": _clean_promptbert,
    "prompteol": _clean_prompteol,
}


def clean_text(text: str, rule: str) -> str:
    """Return the text after the clean-up rule of that name (`prompt.clean`)."""
    return _CLEANERS[rule](text)


def strip_row(row: list[Piece]) -> list[Piece]:
    """Strip the whole prompt, BOS and EOS apart, as some references do before tokenising."""
    out = list(row)
    for order, strip in ((range(len(out)), str.lstrip), (reversed(range(len(out))), str.rstrip)):
        for index in order:
            if out[index].kind in ("bos", "eos"):
                continue
            out[index] = replace(out[index], value=strip(out[index].value))
            if out[index].value:
                break
    return out


def spell(row: list[Piece]) -> str:
    """Return the prompt that the pieces make."""
    return "".join(piece.value for piece in row)


def join_blocks(row: list[Piece]) -> list[Piece]:
    """Join the pieces of each optional block, which is tokenised as one."""
    joined: list[Piece] = []
    for piece in row:
        if joined and piece.block and piece.block == joined[-1].block:
            joined[-1] = replace(joined[-1], kind=piece.when, value=joined[-1].value + piece.value)
        else:
            joined.append(replace(piece, kind=piece.when) if piece.block else piece)
    return joined


def chat_template(messages: tuple[Message, ...], tokenizer: Any) -> str:
    """Return a chat as one template string, by the tokenizer's chat template.

    A last turn by the assistant is left open, so that generation would go on after it. A tokenizer
    without a chat template gets the turns' contents on lines of their own.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if not getattr(tokenizer, "chat_template", None):
        return "\n".join(turn["content"] for turn in turns)
    # Slots must survive the template engine, and its own text may hold braces.
    names = [*SLOTS, *(f"{sign}{slot}" for slot in _OPTIONAL for sign in "?/")]
    marks = {f"{{{name}}}": f"\x02{name}\x03" for name in names}
    for turn in turns:
        for slot, mark in marks.items():
            turn["content"] = turn["content"].replace(slot, mark)
    open_end = turns[-1]["role"] == "assistant"
    rendered = str(
        tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            continue_final_message=open_end,
            add_generation_prompt=not open_end,
        )
    )
    rendered = escape(rendered)
    for slot, mark in marks.items():
        rendered = rendered.replace(mark, slot)
    return rendered
