"""Reads results of every kind and writes a report of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedlm.errors import InputError
from embedlm.evaluation.results import ResultFile, read_results
from embedlm.jobs.atomic import disk_errors, write_text
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.names import check_file
from embedlm.studies.report.advice_panels import advice_panels
from embedlm.studies.report.markdown import markdown
from embedlm.studies.report.page import page
from embedlm.studies.report.panels import Panel, study_panels
from embedlm.studies.report.results_panels import Model, result_panels

__all__ = ["Found", "check_outputs", "read_found", "report", "write_report"]

Found = Mapping[str, Any]
"""What a file of results holds; see `kind`."""
KINDS = {"study": study_panels, "advice": advice_panels}
"""The panels of each kind of file that says its kind."""
_SUFFIXES = (".html", ".md", ".json")
_GIVE = "give what embedlm evaluate, study or advise wrote with -o FILE.json"


def check_outputs(
    outputs: Sequence[str], suffixes: Sequence[str] = _SUFFIXES, inputs: Sequence[Any] = ()
) -> None:
    """Refuse, before anything is computed, outputs that cannot be written.

    Args:
        outputs: the files.
        suffixes: endings that are allowed.
        inputs: files and folders that are read; .json is no form of a folder's documents.

    Raises:
        InputError: another ending, a folder, a folder that is not there, or an input.
    """
    for output in outputs:
        json = output.endswith(".json")
        read = [one for one in inputs if not (json and Path(str(one)).is_dir())]
        check_file(output, suffixes, read)


def read_found(path: Path) -> Found | ResultFile:
    """Return what a file of results holds: of a study or advice, or of evaluate.

    Raises:
        InputError: no such file, or one of another kind.
    """
    value = read_json(path, InputError, _GIVE)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no results; {_GIVE}")
    if "kind" not in value:
        return read_results(path)
    if value["kind"] not in list(KINDS) or value.get("schema") != 1:
        raise InputError(
            f"{path}: results of the kind {value['kind']!r}, version {value.get('schema')!r}; "
            f"this version reads {', '.join(KINDS)} of version 1, and those of embedlm evaluate"
        )
    try:
        report([(path.stem, value)])
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} holds damaged results ({type(error).__name__}: {error}); write them again "
            f"with embedlm {'study' if value['kind'] == 'study' else 'advise'} -o FILE"
        ) from error
    return value


def report(
    found: Sequence[tuple[str, Found | ResultFile]],
    *,
    title: str | None = None,
    more: Sequence[Panel] = (),
) -> tuple[str, list[Panel], list[str]]:
    """Return the title, the panels and the facts of a report.

    Args:
        found: what each file holds, by the file's name.
        title: None: told from what is reported.
        more: panels that stand at the end.
    """
    panels: list[Panel] = []
    evaluated = [(name, one) for name, one in found if isinstance(one, ResultFile)]
    others = [one for _, one in found if not isinstance(one, ResultFile)]
    if evaluated:
        panels += result_panels([Model(name, one.results) for name, one in evaluated])
    for one in others:
        panels += KINDS[one["kind"]](one)
    facts = [_model_fact(name, one) for name, one in evaluated]
    facts += [fact for one in others for fact in _facts(one)]
    named = [_titled(one) for one in others] or ["Results"]
    return title or ", ".join(dict.fromkeys(named)), [*panels, *more], facts


def _titled(found: Found) -> str:
    if found["kind"] == "study":
        return f"Study: {found['study']['name']}"
    return f"Advice for {found['corpus']['name']}"


def _model_fact(name: str, found: ResultFile) -> str:
    model = found.model
    return f"{name}: {model.get('name')}, revision {str(model.get('revision'))[:12]}"


def _facts(found: Found) -> list[str]:
    """Return how a study or advice was made."""
    given = [Path(word).name if "/" in word else word for word in found["command"][1:]]
    words = ["embedlm", *given]
    machine = found["machine"]
    told = ", ".join(f"{key} {machine[key]}" for key in ("embedlm", "torch", "transformers"))
    return [
        f"Command: {shlex.join(words)}",
        f"Machine: {machine['system']}, {machine['processor']}, {machine['cpus']} CPUs, "
        f"{machine['threads']} threads; {told}; seed {found['seed']}",
    ]


def write_report(
    path: Path,
    found: Sequence[tuple[str, Found | ResultFile]],
    *,
    title: str | None = None,
    more: Sequence[Panel] = (),
) -> None:
    """Write a report (.html, .md), or one file's results as they are (.json).

    Args:
        path: the file; it appears whole or not at all.
        found: as `report` takes it.
        title: as there.
        more: as there.
    """
    with disk_errors(path, "Nothing was written; make room, or name another output"):
        if path.suffix == ".json":
            write_json(path, found[0][1], indent=1)
            return
        parts = report(found, title=title, more=more)
        write_text(path, page(*parts) if path.suffix == ".html" else markdown(*parts))
