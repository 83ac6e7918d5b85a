"""What all bodies of requests share: a field that is not known is refused, never passed over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import NoneType
from typing import Annotated, Any, NoReturn, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticCustomError

from embedlm.errors import InputError, closest
from embedlm.schema.arguments import short
from embedlm.search.filters import parse_filter
from embedlm.serving.encoding import Item, Served, Text
from embedlm.serving.failures import RequestError
from embedlm.serving.pictures import check_sight, pictured

__all__ = [
    "ALLOW",
    "Body",
    "Count",
    "ImageItem",
    "ImageUri",
    "TokenIds",
    "Where",
    "check_ids",
    "items_of",
    "read_json",
]

ALLOW = "shorten it, or send truncate: true"
"""What a caller can do with a text that is too long, where bodies have the field."""
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = list[TokenId]
Count = Annotated[int, Field(gt=0, lt=1 << 31)]


_SAME = (
    {"k", "top_k", "topk", "top_n", "n", "limit", "size", "max_num_results", "max_results"},
    {"input", "inputs", "text", "texts", "documents", "sentences", "passages", "content"},
    {"query", "queries", "q", "question", "search", "text", "source_sentence"},
    {"dim", "dims", "dimension", "dimensions", "output_dimension", "embedding_size"},
    {"role", "prompt_name", "input_type", "task", "task_type"},
    {"instruction", "prompt", "task_description"},
    {"where", "filter", "filters"},
    {"precision", "encoding_format", "embedding_types", "dtype"},
    {"truncate", "truncation"},
    {"normalize", "normalized", "normalize_embeddings"},
    {"model", "model_name", "model_id", "engine"},
    {"index", "index_name", "store", "vector_store", "collection"},
    {"image", "images", "image_url", "url"},
)
"""What interfaces call one thing: a field of another one is a hint to ours."""
_ABOUT = ("title", "description", "default")


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _given(cls, values: Any) -> Any:
        """Take null for a field that is left out, where it may be: clients send what they lack."""
        if not isinstance(values, dict):
            return values
        for name in values:
            if name not in cls.model_fields:
                raise PydanticCustomError("unknown_field", "{words}", {"words": cls._unknown(name)})
        return {
            name: value
            for name, value in values.items()
            if value is not None or not cls._may_be_left_out(name)
        }

    @classmethod
    def _unknown(cls, name: Any) -> str:
        """Return what is said of a field that there is not: the nearest, and all there are."""
        allowed = list(cls.model_fields)
        same = (one for words in _SAME if name in words for one in allowed if one in words)
        near = next(same, None)
        hint = f" Did you mean {near!r}?" if near else closest(str(name), allowed)
        return f"{short(name)} is no field here.{hint} Allowed: {', '.join(allowed)}"

    @classmethod
    def _may_be_left_out(cls, name: str) -> bool:
        """Tell whether a field has a default, and null no meaning of its own."""
        one = cls.model_fields.get(name)
        return (
            one is not None and not one.is_required() and NoneType not in get_args(one.annotation)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Tell in the schema, too, that null is taken."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        for name, one in schema.get("properties", {}).items():
            if cls._may_be_left_out(name):
                about = {key: one.pop(key) for key in _ABOUT if key in one}
                schema["properties"][name] = {"anyOf": [one, {"type": "null"}], **about}
        return reference


def _is_filter(value: Any) -> Any:
    """Refuse what is no JSON object by the form that is one; the CLI's own form is translated."""
    if isinstance(value, dict):
        return value
    written: Any = {"type": "gte", "key": "year", "value": 2020}
    if isinstance(value, str):
        with suppress(InputError):
            written = parse_filter(value)
    words = f"give a filter as a JSON object, such as {json.dumps(written)}"
    raise PydanticCustomError("filter", "{words}", {"words": words})


Where = Annotated[dict[str, Any], BeforeValidator(_is_filter)]
"""A filter of metadata, as `embedlm.search.filters` has them."""
ImageUri = Annotated[
    str,
    Field(description="A PNG, JPEG, WebP, GIF or BMP in base64, as it is or as a data: URI."),
]


class ImageItem(Body):
    """A text, an image, or both."""

    text: str | None = None
    image: ImageUri | None = None


def read_json(body: bytes) -> Any:
    """Return what a body says.

    Raises:
        RequestError: a field that is given twice, of which one would be passed over; NaN or
            infinity, which are no JSON.
        ValueError: it cannot be read.
    """
    return _READER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        ((twice, _),) = counts.most_common(1)
        raise RequestError(f"the field {short(twice)} is given twice; give it once")
    return found


def _no_number(name: str) -> NoReturn:
    raise RequestError(f"the body holds {name}, which is no JSON; give finite numbers")


_READER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)


def check_ids(rows: Iterable[Sequence[int]], size: int, advice: str = "") -> None:
    """Refuse ids that a vocabulary does not have.

    Args:
        rows: of token ids.
        size: of the vocabulary.
        advice: what to do.

    Raises:
        RequestError: names the highest.
    """
    highest = max((max(row) for row in rows if row), default=-1)
    if highest >= size:
        raise RequestError(
            f"token id {highest} is not in this model's vocabulary (0 to {size - 1}); such ids "
            f"come from another model's tokenizer{advice}"
        )


def items_of(
    texts: Any,
    instruction: str | list[str] | None = None,
    served: Served | None = None,
    role: str | None = None,
) -> tuple[list[Item], bool]:
    """Return what is embedded, and whether it is rows of token ids.

    Args:
        texts: a string, an `ImageItem`, a list of these, a row of token ids, or a list of such
            rows.
        instruction: one for all texts, or one for each.
        served: the model; where there are images it must read some. None: that is seen later.
        role: of the texts, where the model reads those of each by a network of its own.

    Raises:
        InputError: an empty text or row, or another number of instructions than texts.
        RequestError: an image that cannot be read.
        UnsupportedError: an image, and the model reads texts alone.
    """
    if isinstance(texts, str | ImageItem) or (texts and isinstance(texts[0], int)):
        texts = [texts]
    if served is not None and any(getattr(one, "image", None) is not None for one in texts):
        check_sight(served, role)
    rows: list[Text] = [
        one if isinstance(one, str) else _row(one, index) for index, one in enumerate(texts)
    ]
    for index, row in enumerate(rows):
        if not row:
            raise InputError(f"input {index} is empty; leave it out")
    if isinstance(instruction, list):
        if len(instruction) != len(rows):
            raise InputError(
                f"{len(instruction)} instructions were given for {len(rows)} texts; give one, or "
                "one for each text"
            )
        instructions: list[str | None] = list(instruction)
    else:
        instructions = [instruction] * len(rows)
    ids = bool(rows) and isinstance(rows[0], tuple)
    return list(zip(rows, instructions, strict=True)), ids


def _row(given: ImageItem | Sequence[int], index: int) -> Text:
    """Return what is embedded of an item that is no string."""
    if not isinstance(given, ImageItem):
        return tuple(given)
    if given.image is None:
        return given.text or ""
    return pictured(given.image, given.text or "", f"input {index}")
