"""A plugin of pytest: sentence-transformers' tests with stand-ins for the hub's files.

EMBEDLM_SUITE_BRIDGE=1 also puts our class in the place of theirs: a SentenceTransformer that is
opened by name or folder, in a test or a fixture, is one that embedlm loaded. EMBEDLM_SUITE_OUT
names the file for the outcomes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets

from benchmarks import suite_hub

datasets.load_dataset = suite_hub.load_dataset

from sentence_transformers import SentenceTransformer  # noqa: E402  (after the stand-in)

OUTCOMES: dict[str, tuple[str, str]] = {}


def _ours(cls: type, model_name_or_path: Any = None, *args: Any, **options: Any) -> Any:
    """Return an instance to be initialised: of our class where a plain model is opened."""
    opened = model_name_or_path is not None and options.get("modules") is None
    if cls is SentenceTransformer and opened:
        from embedlm.interop.sentence_transformers import EmbedderSentenceTransformer

        cls = EmbedderSentenceTransformer
    return object.__new__(cls)


if os.environ.get("EMBEDLM_SUITE_BRIDGE"):
    SentenceTransformer.__new__ = _ours  # type: ignore[method-assign]


def pytest_runtest_logreport(report: Any) -> None:
    """Keep a test's outcome; a failing fixture is a failure."""
    if report.when == "call" or report.outcome != "passed":
        reason = report.longreprtext.strip().splitlines()[-1:] if report.failed else []
        OUTCOMES[report.nodeid] = (report.outcome, *reason) if reason else (report.outcome, "")


def pytest_sessionfinish() -> None:
    """Write the outcomes."""
    Path(os.environ["EMBEDLM_SUITE_OUT"]).write_text(json.dumps(OUTCOMES), encoding="utf-8")
