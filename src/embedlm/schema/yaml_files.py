"""The one reader of YAML files and of YAML text, and the one writer.

PyYAML alone takes what nobody writes by hand: a few hundred bytes of aliases that stand for
gigabytes, brackets nested beyond Python's recursion limit, the same key twice (the last one wins).
Here each of these is refused, before anything is built, with the line where it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from embedlm.errors import InputError, RecipeError, closest

__all__ = ["known_file", "parse_yaml", "read_mapping", "written"]

MAX_BYTES = 256 * 1024
"""Size of a file; the largest recipe that comes with the package has 8 KB."""
MAX_DEPTH = 40
"""Lists and mappings inside each other."""
MAX_NODES = 20_000
"""Values of a file, where each alias counts as often as what it stands for."""
_MAX_NUMBER = 100
"""Characters of a value that is not text; PyYAML takes quadratic time for some long numbers."""

_TOO_DEEP = f"more than {MAX_DEPTH} lists and mappings inside each other"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._extent: dict[int, tuple[int, int]] = {}

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Scan an opening bracket or brace; refused here, as the scanner reads far ahead."""
        if self.flow_level >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one value, and refuse it where it is too large once its aliases are filled in."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if self._depth >= MAX_DEPTH:
            raise _refused(_TOO_DEEP, event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._extent:
                raise _refused(f"*{event.anchor} refers to a value that it is part of", event)
            size, height = self._extent[id(node)]
        else:
            size, height = self._measure(node)
            self._extent[id(node)] = size, height
        if size > MAX_NODES or self._depth + height > MAX_DEPTH:
            raise _refused(
                f"more than {MAX_NODES} values, or more than {MAX_DEPTH} inside each other, once "
                "its aliases are filled in",
                event,
            )
        return node

    def _measure(self, node: Any) -> tuple[int, int]:
        """Return how many values a node holds, itself among them, and how deep they go."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        mapping = isinstance(node, yaml.MappingNode)
        children = [child for pair in node.value for child in pair] if mapping else node.value
        extents = [self._extent[id(child)] for child in children]
        return 1 + sum(size for size, _ in extents), 1 + max((h for _, h in extents), default=0)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping; a key that stands in it twice is refused."""
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise _refused(f"the key {key.value[:60]!r} stands here twice", key)
                keys.add((key.tag, key.value))
        return node

    def compose_scalar_node(self, anchor: Any) -> Any:
        """Compose a scalar; a number or date of absurd length is refused."""
        node = super().compose_scalar_node(anchor)
        if len(node.value) > _MAX_NUMBER and not node.tag.endswith((":str", ":binary")):
            raise _refused(f"a number of {len(node.value)} characters", node)
        return node


def _refused(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: with 256 KB at most.
        where: the file's name, or what the text is; it begins the error message.

    Raises:
        RecipeError: invalid YAML, a repeated key, or a text that is too large or too deep.
    """
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{where}: {len(text)} characters of YAML; at most {MAX_BYTES} are read")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        # The message of PyYAML spans lines and draws the position.
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise RecipeError(f"{where}{line}: not valid YAML: {problem}") from error
    except (ValueError, OverflowError) as error:
        raise RecipeError(f"{where}: not valid YAML: {error}") from error


def read_mapping(path: Path, what: str, hint: str = "") -> dict[str, Any]:
    """Return the fields of a YAML (or JSON) file.

    Args:
        path: the file.
        what: recipe, plan, ...: what the file should hold, for the error message.
        hint: what the caller can give instead, for the error message.

    Raises:
        RecipeError: the file cannot be read, is too large, or holds no mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            told, hint = "it is not valid UTF-8", "save it as UTF-8"
        else:
            told = str(error.strerror or error)
        hint = hint or "give the name of a file that is there"
        raise RecipeError(f"cannot read the {what} {str(path)!r}: {told}; {hint}") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{path.name} is larger than {MAX_BYTES // 1024} KB; a {what} is smaller")
    data = parse_yaml(text, path.name)
    if not isinstance(data, dict):
        kind = "nothing" if data is None else type(data).__name__
        raise RecipeError(
            f"{path.name} holds {kind}, not a mapping of fields; write a line `field: value` for "
            f"each field of a {what}"
        )
    return data


def known_file(name: str | Path, folder: Path, what: str) -> Path:
    """Return the file of a name that comes with the package, or the .yaml file that is named.

    Args:
        name: the name or the file.
        folder: of the package's files.
        what: suite, study, ...: what the file holds, for the error message.

    Raises:
        InputError: neither.
    """
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if str(name) in known:
        return folder / f"{name}.yaml"
    if Path(name).suffix.lower() in (".yaml", ".yml", ".json"):
        return Path(name)
    raise InputError(
        f"{str(name)!r} is no {what}; allowed: {', '.join(known)}, or a .yaml file."
        + closest(str(name), known)
    )


def written(data: Mapping[str, Any]) -> str:
    """Return data as YAML."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML takes for a line break; PyYAML itself would lose or change it."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if any(sign in value for sign in "\x85\u2028\u2029\ufeff") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)
