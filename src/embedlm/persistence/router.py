"""Folders of sentence-transformers' Router: each role is read by modules of its own.

What the keys of its file mean was read in sentence-transformers 6.2.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.errors import ModelError, UnsupportedError
from embedlm.jobs.json_files import inner_path, read_object
from embedlm.persistence.listing import LISTING, Modules, listed_entries, module_at
from embedlm.persistence.settings import FLAG, TEXT, Draft, Setting, Values, keep, read_settings
from embedlm.schema.arguments import short

__all__ = ["ROUTER", "ROUTER_FILE", "Router", "read_router"]

ROUTER = ("Router", "Asym")
"""What the module is called, and was before version 5."""
ROUTER_FILE = "router_config.json"
_OLD_FILE = "config.json"
_PARTS = ("types", "structure", "parameters")
_ROLES = (None, "query", "document")


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


_PARAMETERS = (
    Setting("default_route", TEXT, keep("default"), null="missing"),
    Setting("allow_empty_key", FLAG, keep("first")),
    Setting(
        "route_mappings",
        Values("a mapping of (task, modality) to the name of a route", _is_mapping),
        keep("mappings"),
        null="missing",
    ),
)


@dataclass(frozen=True, slots=True)
class Router:
    """Which modules read a text of each role."""

    folder: Path
    routes: dict[str, Modules]
    """The modules of each route, with those that stand before and after the router."""
    roles: dict[str | None, str]
    """The route of each role; None: of a text without one, where the folder names one."""

    @property
    def default(self) -> str:
        """The route that stands for the model where one must."""
        return self.roles.get(None) or self.roles.get("document") or next(iter(self.routes))

    def length(self, route: str, given: int | dict[str, int] | None) -> Any:
        """Return how many tokens of its texts a route reads, where a call gives that by role.

        It stays a mapping where the route serves roles of several lengths.
        """
        if not isinstance(given, dict):
            return given
        roles = [role for role, own in self.roles.items() if own == route]
        others = {role: None if role == "query" else given.get("document") for role in roles}
        lengths = {given.get(role or "default", other) for role, other in others.items()}
        return lengths.pop() if len(lengths) == 1 else given


def read_router(folder: Path) -> Router | None:
    """Return the routes of a folder; None: it has none.

    Raises:
        ModelError: a file that cannot be read, or a path outside the folder.
        UnsupportedError: a module or a setting that is not known.
    """
    file = folder / LISTING
    entries = listed_entries(folder)
    kinds = [entry["type"].rsplit(".", 1)[-1] for entry in entries]
    places = [index for index, kind in enumerate(kinds) if kind in ROUTER]
    if not places:
        return None
    if len(places) > 1:
        raise UnsupportedError(f"{file} has {len(places)} routers; EmbedLM can honour one")
    modules = [
        None if kind in ROUTER else module_at(folder, file, entry["type"], entry["path"])
        for kind, entry in zip(kinds, entries, strict=True)
    ]
    before = [module for module in modules[: places[0]] if module is not None]
    after = [module for module in modules[places[0] :] if module is not None]
    place = inner_path(folder, entries[places[0]]["path"], file)
    own = place / ROUTER_FILE
    own = own if own.is_file() else place / _OLD_FILE
    content = read_object(own)
    structure = _structure(own, content)
    named = {name: _module(folder, own, place, name, content["types"]) for name in content["types"]}
    routes = {
        route: [*before, *(named[name] for name in names), *after]
        for route, names in structure.items()
    }
    return Router(folder, routes, _roles(folder, own, content, list(routes)))


def _structure(file: Path, content: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of each route's modules.

    Raises:
        ModelError: the file is damaged.
    """
    types: Any = content.get("types")
    structure: Any = content.get("structure")
    fits = (
        set(content) <= set(_PARTS)
        and _is_mapping(types)
        and isinstance(structure, dict)
        and bool(structure)
        and all(isinstance(names, list) and names for names in structure.values())
    )
    every = [name for names in structure.values() for name in names] if fits else []
    if not fits or set(map(str, every)) != set(types or {}):
        raise ModelError(
            f'{file} is damaged: it must have "types" (the class of each module), "structure" (the '
            'modules of each route, by name; each of them in some route) and "parameters"'
        )
    found: dict[str, list[str]] = structure
    return found


def _module(
    folder: Path, file: Path, place: Path, name: str, types: dict[str, str]
) -> tuple[str, Path]:
    inner = inner_path(place, name, file).relative_to(folder)
    return module_at(folder, file, types[name], "" if str(inner) == "." else inner.as_posix())


def _roles(
    folder: Path, file: Path, content: dict[str, Any], routes: list[str]
) -> dict[str | None, str]:
    """Return the route of each role, as sentence-transformers resolves it for a text."""
    draft = Draft(folder)
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise ModelError(f"{file}: parameters is {short(parameters)}; allowed is a mapping")
    read_settings(draft, file, parameters, _PARAMETERS, "Correct it")
    mappings = _mappings(file, draft.facts.get("mappings", {}))
    default = draft.facts.get("default")
    if default is None and draft.facts.get("first", True):
        default = routes[0]
    for name in (default, *mappings.values()):
        if name is not None and name not in routes:
            raise ModelError(f"{file} names the route {name!r}; there are {', '.join(routes)}")
    for name in (*routes, *(task for task, _ in mappings if task is not None)):
        if not re.fullmatch(r"\w[\w .-]{0,99}", name):  # they become names of folders
            raise UnsupportedError(
                f"{file} has the route or task {short(name)}; EmbedLM can honour names of letters, "
                "digits, _, -, dots and spaces"
            )
    found: dict[str | None, str] = {}
    for role in dict.fromkeys([*_ROLES, *(task for task, _ in mappings), *routes]):
        mapped = [(role, "text"), (role, None), (None, "text"), (None, None)]
        names = [mappings[key] for key in mapped if key in mappings]
        names += [name for name in (role, "text") if name in routes]
        route = names[0] if names else default if role is None else None
        if route is not None:
            found[role] = route
    return found


def _mappings(file: Path, given: dict[str, str]) -> dict[tuple[str | None, str | None], str]:
    """Return the route of each task and modality, whose keys stand there as Python writes them."""
    found = {}
    for key, route in given.items():
        try:
            pair = ast.literal_eval(key)
            task, modality = pair
        except (ValueError, SyntaxError, TypeError, RecursionError):
            task, modality = 0, 0
        if not isinstance(task, str | None) or modality not in (None, "text"):
            raise UnsupportedError(
                f"{file}: route_mappings has the key {short(key)}; EmbedLM can honour "
                "('task', 'text') and ('task', None), where task may be None"
            )
        found[task, modality] = route
    return found
