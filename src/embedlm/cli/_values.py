"""What several commands share: reading the values of options, and printing results."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedlm.errors import InputError, ModelError, RecipeError, clipped
from embedlm.schema.yaml_files import parse_yaml

if TYPE_CHECKING:
    from embedlm.search import Hit

__all__ = [
    "counted",
    "emit",
    "listed_names",
    "parse_changes",
    "parse_heads",
    "parse_weights",
    "read_demonstrations",
    "show_hits",
]

_SHAPE = 'write objects {"instruct": ..., "query": ..., "response": ...}, a line each or as a list'


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: 1 text, 1,200 texts."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed_names(texts: Sequence[str]) -> list[str]:
    """Return the names of options such as `a,b`, each once."""
    names = (name.strip() for text in texts for name in text.split(","))
    return list(dict.fromkeys(name for name in names if name))


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Return the values of `field=value` by field.

    Raises:
        InputError: a text of another form, or a field that is set twice.
    """
    changes: dict[str, Any] = {}
    for text in texts:
        name, value = _change(text)
        if name in changes:
            raise InputError(f"--set {text!r}: {name} is set twice; give it once")
        changes[name] = value
    return changes


def _change(text: str) -> tuple[str, Any]:
    """Return field and value of `field=value`, the value read as YAML."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InputError(f"--set {text!r}: write field=value, e.g. pooling.kind=mean")
    try:
        return name, parse_yaml(value, "the value")
    except RecipeError as error:
        problem = str(error).partition("not valid YAML: ")[2] or error
        raise InputError(f"--set {text!r}: the value is not valid YAML: {problem}") from error


def read_demonstrations(path: str | None) -> list[dict[str, str]] | None:
    """Return the demonstrations of a file: a JSON or YAML list, or records of any form."""
    from embedlm.data import Source
    from embedlm.data.forms import file_form
    from embedlm.jobs.json_files import read_json

    if path is None:
        return None
    file = Path(path)
    form, _ = file_form(file)
    demonstrations: list[Any]
    if file.suffix.lower() in (".yaml", ".yml"):
        demonstrations = _yaml_list(file)
    elif form is None and _begins_a_list(file):
        demonstrations = read_json(file, InputError)
    else:
        demonstrations = []
        for row in Source(file, form=form or "jsonl").rows():
            if row.error is not None:
                raise InputError(f"{path}:{row.line}: {row.error}; {_SHAPE}")
            demonstrations.append(row.value)
    for number, shot in enumerate(demonstrations, 1):
        if not isinstance(shot, dict) or not all(isinstance(v, str) for v in shot.values()):
            raise InputError(f"{path!r}: entry {number} is not an object of strings; {_SHAPE}")
    return demonstrations


def _yaml_list(file: Path) -> list[Any]:
    try:
        value = parse_yaml(file.read_text(encoding="utf-8-sig"), file.name)
    except OSError as error:
        raise InputError(f"cannot read the demonstrations {str(file)!r}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(file)!r} is not valid UTF-8; save it as UTF-8") from error
    except RecipeError as error:
        raise InputError(str(error)) from error
    if not isinstance(value, list):
        raise InputError(f"{str(file)!r} holds no list; {_SHAPE}")
    return value


def _begins_a_list(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as handle:
            return handle.read(4096).lstrip().startswith("[")
    except OSError as error:
        raise InputError(f"cannot read the demonstrations {str(file)!r}: {error}") from error


def parse_heads(text: str | None) -> list[Any] | None:
    """Return the heads of `dense,sparse` or of a YAML list with options."""
    if text is None:
        return None
    try:
        return list(parse_yaml(f"[{text}]", f"--heads {text!r}"))
    except RecipeError as error:
        raise InputError(
            f"{error}; write names with commas between, or with options: "
            "dense,{sparse: {top_k: 128}}"
        ) from error


def parse_weights(text: str | None) -> list[float] | None:
    """Return the numbers of `0.7,0.3`."""
    if text is None:
        return None
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = [math.nan]
    if not all(map(math.isfinite, weights)):
        raise InputError(f"--weights {text!r}: write a number for each, e.g. 0.7,0.3")
    return weights


def emit(value: Any) -> None:
    """Print a value as JSON.

    Raises:
        ModelError: a number is NaN or infinite, which JSON cannot hold.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ModelError(
            "the result holds NaN or infinity, so nothing was printed; the model's numbers have "
            "left the range of its dtype: try --dtype float32"
        ) from error
    print(text)


def show_hits(hits: list[Hit], *, json: bool) -> None:
    """Print each passage with its score, file and line: on a line of its own, or as JSON."""
    if json:
        emit(
            [
                {
                    "rank": hit.rank,
                    "score": hit.score,
                    "file": hit.passage.file,
                    "line": hit.passage.line,
                    "text": hit.passage.text,
                }
                for hit in hits
            ]
        )
        return
    for hit in hits:
        text = clipped(" ".join(hit.passage.text.split()), 200)
        print(f"{hit.score:.4f}  {hit.passage.file}:{hit.passage.line}  {text}")
