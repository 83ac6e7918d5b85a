"""What a request may fail with: a status, a code, and the words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedlm.errors import EmbedLMError, InputError, NotFiniteError

__all__ = [
    "NO_JSON",
    "DepartedError",
    "EndingError",
    "LateError",
    "OverloadedError",
    "RequestError",
    "ServingError",
    "TooLargeError",
    "TooLongError",
    "UnauthorizedError",
    "UnavailableError",
    "UnknownNameError",
    "called",
    "explained",
    "status_of",
]

NO_JSON = "the body cannot be read as JSON; send one JSON object in UTF-8, not compressed"


class ServingError(EmbedLMError):
    """A request that is not answered."""

    status = 500
    code = "internal_error"
    kind = "Backend"
    """TEI's word for it."""


class RequestError(ServingError, InputError):
    """A request that cannot be served as it stands."""

    status, code, kind = 400, "invalid_request", "Validation"


class TooLargeError(RequestError):
    """A body, or a number of texts, above the limit."""

    status, code = 413, "request_too_large"


class TooLongError(RequestError):
    """A text that is longer than the model reads, where it may not be shortened."""

    status, code, kind = 413, "context_length_exceeded", "Tokenizer"


class UnknownNameError(RequestError):
    """A model or index that is not served."""

    status, code = 404, "not_found"


class UnauthorizedError(RequestError):
    """No key, or one that is not known."""

    status, code, kind = 401, "invalid_api_key", "Unauthorized"


class OverloadedError(ServingError):
    """More waits than the server takes."""

    status, code, kind = 429, "overloaded", "Overloaded"

    def __init__(self, message: str, retry_after: float) -> None:
        """Say what is too much, and after how many seconds to try again."""
        super().__init__(message)
        self.retry_after = max(1, round(retry_after))


class UnavailableError(ServingError):
    """An index that cannot be read now: it was moved, damaged, or is open elsewhere."""

    status, code, kind = 503, "index_unavailable", "Backend"


class EndingError(ServingError):
    """A request that the server does not answer any more, as it was told to end at once."""

    status, code, kind = 503, "server_ending", "Backend"

    def __init__(self) -> None:
        """Say what a client can do."""
        super().__init__("the server was told to end at once; send the request to another one")


class LateError(ServingError):
    """A request that was not answered within its time."""

    status, code, kind = 504, "timeout", "Overloaded"

    @classmethod
    def after(cls, seconds: float) -> LateError:
        """Say how long it had."""
        return cls(
            f"the request was not answered within {seconds:g} seconds; send less at once, or try "
            "again later"
        )


class DepartedError(ServingError):
    """A client that closed its connection before the answer."""

    status, code, kind = 499, "client_closed_request", "Overloaded"


def status_of(error: EmbedLMError) -> tuple[int, str, str]:
    """Return the status, code and TEI's kind of an error."""
    if isinstance(error, ServingError):
        return error.status, error.code, error.kind
    if isinstance(error, NotFiniteError):
        return 500, "not_finite", "Backend"
    # What is left says that something of the request cannot be used by this model.
    return RequestError.status, RequestError.code, RequestError.kind


@contextmanager
def called(places: Mapping[str, str]) -> Iterator[None]:
    """Have errors call things as they are served: where these lie is not the client's matter.

    Args:
        places: of models and indexes, as the library's errors name them, with their served names.
    """
    try:
        yield
    except EmbedLMError as error:
        words = str(error)
        for place in sorted(places, key=len, reverse=True):
            words = words.replace(repr(place), repr(places[place]))
            if Path(place).is_absolute():
                words = words.replace(place, places[place])
        error.args = (words,)
        raise


def explained(issues: Iterable[Mapping[str, Any]]) -> str:
    """Return pydantic's issues in one line: the fields, and what is wrong with each."""
    lines: dict[str, None] = {}
    for issue in issues:
        if issue["type"] == "json_invalid":
            return NO_JSON
        named = (str(part) for part in issue["loc"] if part != "body")
        where = ".".join(part for part in named if not part.endswith("Body"))  # one of several
        if not where and issue["type"] in ("model_attributes_type", "model_type", "dict_type"):
            return "the body is no JSON object; send one, with content-type: application/json"
        lines[f"{where}: {issue['msg']}" if where else str(issue["msg"])] = None
    shown = list(lines)[:8]
    more = f"; and {len(lines) - len(shown)} more" if len(lines) > len(shown) else ""
    return "the request cannot be read: " + "; ".join(shown) + more
