"""One item and one question: the chat, what its answer must be, and one repair.

How an answer ended is looked at before it is read: one that was cut off is asked for again with
twice the tokens. An answer that is not what the step's fields say is sent back once with what is
wrong with it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from embedlm.data.words import word_count
from embedlm.generation import Answer, Conversation, Question, Sampling
from embedlm.generation.generator import unquoted
from embedlm.jobs.json_files import why_not_json
from embedlm.schema.pipeline import AnswerField, Generate
from embedlm.schema.yaml_files import read_mapping
from embedlm.synthesis.items import Item, drawn, fill, seed_of

__all__ = ["Asker", "Outcome", "shared_prompts"]

_SHOWN = 300
"""Characters of a problem that a model is told of."""

_BRACES = 200
"""Places at which a JSON object may begin that are tried."""
_INTRODUCTION = re.compile(
    r"\A(?:sure|certainly|of course|absolutely|okay|ok|here(?:['’]s| is| are))\b[^\n]{0,150}:"
    r"\s*(?:\n\s*|\Z)",
    re.IGNORECASE,
)
"""What chat models say before they answer."""
_YES = re.compile(r"\A(?:sure|certainly|of course|absolutely|okay)[!.:,]\s+(?=\S+ )", re.IGNORECASE)
"""The same, on the line of the answer."""
_STRONG = re.compile(r"\A(\*\*|__)([^*_\n]{1,40})(?::\1|\1:)")
"""A label in bold type."""
_NUMBER = re.compile(r"\A(?:\d{1,2}[.)]|[-*•])\s+")

_OWN = 4
"""Words from which on an answer may not be that of an example; a label may."""


@lru_cache(maxsize=1)
def shared_prompts() -> dict[str, Any]:
    """Return what pipelines add to their prompts."""
    return read_mapping(Path(__file__).with_name("prompts.yaml"), "prompts")


@dataclass(slots=True)
class Outcome:
    """What became of an item: the items after a step, or why there is none."""

    items: list[Item] = field(default_factory=list)
    aside: list[tuple[str, Item]] = field(default_factory=list)
    """The reason, and the item as it then was."""
    counts: dict[str, int] = field(default_factory=dict)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Unreadable(Exception):  # noqa: N818 (never leaves this module)
    """An answer that is not what was asked for."""


class _Introduction(_Unreadable):
    """A line before what was asked for."""


class Asker:
    """Asks about items as a step says."""

    def __init__(self, step: Generate, seed: int) -> None:
        self.step, self.seed = step, seed
        self.model = _answer_model(step)
        self.shown = {_bare(value) for one in step.examples for value in one.values()}
        """What examples hold: small models write it again instead of an answer of their own."""
        self.schema = "" if self.model is None else json.dumps(_plain(self.model))

    def conversation(self, item: Item) -> Conversation[Outcome]:
        """Hold the conversations of all samples of an item; return what came of them."""
        made = Outcome()
        for sample in range(self.step.samples):
            own = {**item, **drawn(self.step.draw, self.seed, self.step.name, item["id"], sample)}
            if self.step.samples > 1:
                own["id"] = f"{item['id']}.{sample + 1}"
            values = yield from self._sample(own, made)
            if isinstance(values, str):
                made.aside.append((f"{self.step.name}: {values}", own))
            else:
                made.items += self._items(own, values)
        return made

    def _sample(self, item: Item, made: Outcome) -> Conversation[dict[str, Any] | str]:
        """Return the values of one answer; or why there are none."""
        step, seed = self.step, seed_of(self.seed, self.step.name, item["id"])
        sampling = Sampling(step.temperature, step.top_p, step.max_new_tokens)
        question = Question(
            self._chat(item), sampling, seed, step.stop, step.logprobs, plain=step.plain
        )
        problem = ""
        for repair in (False, True):
            answer = yield from self._whole(question, made)
            if answer.finish == "refused":
                return f"refused: {answer.text}"
            if answer.finish == "length" and (step.stop is None or step.stop not in answer.text):
                return f"cut off after {answer.new_tokens or sampling.max_new_tokens * 2} tokens"
            try:
                return {**self._values(answer.text), **self._likelihood(answer)}
            except _Introduction as error:
                problem, question = str(error), replace(question, stop=None)
                continue
            except _Unreadable as error:
                problem = str(error)
            if repair or self.model is None:
                break
            _count(made, "repairs")
            told = fill(shared_prompts()["repair"], {"problem": problem, "schema": self.schema})
            chat = [
                *question.chat,
                {"role": "assistant", "content": answer.text[: _SHOWN * 10]},
                {"role": "user", "content": told},
            ]
            question = replace(question, chat=chat, seed=seed_of(seed, "repair"))
        return f"unreadable: {problem}"

    def _whole(self, question: Question, made: Outcome) -> Conversation[Answer]:
        """Return the answer; one that was cut off is asked for again with twice the tokens."""
        answer = yield question
        _spend(made, answer)
        cut = answer.finish == "length"
        if cut and self.model is None and self.step.stop is not None and answer.text.strip():
            return answer
        if cut:
            _count(made, "cut_off")
            sampling = replace(
                question.sampling, max_new_tokens=question.sampling.max_new_tokens * 2
            )
            answer = yield replace(question, sampling=sampling)
            _spend(made, answer)
        return answer

    def _chat(self, item: Item) -> list[dict[str, str]]:
        step = self.step
        values = {**item, "schema": self.schema}
        if step.examples:
            values["examples"] = self._examples(item)
        text = fill(step.prompt, values).strip()
        if self.model is not None and "{schema}" not in step.prompt:
            text += "\n\n" + fill(shared_prompts()["schema"], {"schema": self.schema})
        system = [] if step.system is None else [{"role": "system", "content": step.system}]
        return [*system, {"role": "user", "content": text}]

    def _examples(self, item: Item) -> str:
        shown: Sequence[Any] = self.step.examples
        if self.step.shots is not None and self.step.shots < len(shown):
            rng = random.Random(seed_of(self.seed, self.step.name, "examples", item["id"]))
            shown = rng.sample(shown, self.step.shots)
        return "".join(fill(self.step.example, {**item, **one}) for one in shown)

    def _values(self, text: str) -> dict[str, Any]:
        """Return the fields of an answer.

        Raises:
            _Unreadable: it is not what the step asks for.
        """
        if self.model is None:
            text = self._bare_text(text)
            if not text:
                raise _Unreadable("the answer is empty")
            if word_count(text) >= _OWN and _bare(text) in self.shown:
                raise _Unreadable("the answer is that of an example")
            return {self.step.into: text}
        found = _object(text, self.step.fields)
        try:
            return self.model.model_validate(found).model_dump()
        except ValidationError as error:
            raise _Unreadable(_brief(error)) from error

    def _bare_text(self, text: str) -> str:
        """Return a text without introduction, label, number and quotation marks.

        Raises:
            _Introduction: there is nothing else, since the answer was stopped after it.
        """
        whole = _YES.sub("", _INTRODUCTION.sub("", text.strip()))
        if self.step.stop is None:
            return whole
        line = unquoted(_STRONG.sub(r"\2:", whole.lstrip().split(self.step.stop)[0]))
        if (text.strip() and not whole) or line.rstrip().endswith((":", "：")):
            raise _Introduction(f"only an introduction was written: {text.strip()[:80]!r}")
        label = self.step.prompt.rstrip().rpartition("\n")[2]
        if label.endswith(":") and line[: len(label)].casefold() == label.casefold():
            line = line[len(label) :]
        return unquoted(_NUMBER.sub("", line.strip()))

    def _likelihood(self, answer: Answer) -> dict[str, Any]:
        if not self.step.logprobs:
            return {}
        if answer.logprob is None:
            raise _Unreadable("the model gave no log-probabilities")
        return {"logprob": round(answer.logprob, 9)}

    def _items(self, item: Item, values: dict[str, Any]) -> list[Item]:
        if self.step.each is None:
            return [{**item, **values}]
        entries = values.pop(self.step.each)
        return [
            {**item, **values, "id": f"{item['id']}/{i}", self.step.into: entry}
            for i, entry in enumerate(entries, 1)
        ]


def _bare(text: str) -> str:
    """Return the words of a text, in lower case."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _spend(made: Outcome, answer: Answer) -> None:
    _count(made, "answers")
    _count(made, "prompt_tokens", answer.prompt_tokens)
    _count(made, "new_tokens", answer.new_tokens)


def _count(made: Outcome, name: str, number: int = 1) -> None:
    made.counts[name] = made.counts.get(name, 0) + number


def _answer_model(step: Generate) -> type[BaseModel] | None:
    """Return what pydantic checks an answer by; None where the answer is a text."""
    if not step.fields:
        return None
    fields: dict[str, Any] = {name: _typed(one) for name, one in step.fields.items()}
    return create_model("Answer", __base__=_Strict, **fields)


def _typed(one: AnswerField) -> tuple[Any, Any]:
    about: dict[str, Any] = {"description": one.about} if one.about else {}
    if one.kind == "number":
        return float, Field(ge=one.least, le=one.most, **about)
    if one.kind == "choice":
        # An enum's names in any case are taken: models write "Common" for "common".
        pattern = "(?i)^(" + "|".join(map(re.escape, one.choices)) + ")$"
        return str, Field(pattern=pattern, **{**about, "json_schema_extra": {"enum": one.choices}})
    least = int(one.least or 1)
    most = None if one.most is None else int(one.most)
    if one.kind == "list":
        return list[str], Field(min_length=least, max_length=most, **about)
    return _text_of(least, most), Field(min_length=1, **about)


def _text_of(least: int, most: int | None) -> Any:
    """Return the type of a text with so many words."""

    def check(text: str) -> str:
        words = word_count(text)
        if words < least or (most is not None and words > most):
            allowed = f"at least {least}" if most is None else f"{least} to {most}"
            raise ValueError(f"{words} words, and {allowed} are wanted")
        return text.strip()

    return Annotated[str, AfterValidator(check)]


def _plain(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema without what tells a language model nothing."""
    schema = model.model_json_schema()
    for value in schema.get("properties", {}).values():
        value.pop("title", None)
        value.pop("pattern", None)
    return {key: value for key, value in schema.items() if key != "title"}


def _object(text: str, fields: Iterable[str]) -> Any:
    """Return the first JSON object with a field that was asked for, in prose or in a code block.

    Where none has one, it is the first object of all.
    """
    decoder, wanted = json.JSONDecoder(strict=False), set(fields)
    found: list[Any] = []
    problem, at = "", text.find("{")
    for _ in range(_BRACES):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            problem, end = problem or f"not valid JSON: {why_not_json(error)}", at + 1
        else:
            if wanted & set(value):
                return value
            found.append(value)
        at = text.find("{", end)
    if not found:
        raise _Unreadable(problem or "no JSON object stands in the answer")
    return found[0]


def _brief(error: ValidationError) -> str:
    parts = [
        f"{'.'.join(map(str, one['loc'])) or 'the answer'}: "
        + one["msg"].removeprefix("Value error, ")
        for one in error.errors(include_url=False)
    ]
    return "; ".join(parts)[:_SHOWN]
