"""The libraries' loading reports and bars, kept off the terminal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

__all__ = ["quiet"]

_lock = threading.RLock()
"""The libraries' settings are those of the process: threads that change them wait for another."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the libraries report inside; errors are raised here, and no report is needed."""
    with _lock:
        level, hub_level = transformers_logging.get_verbosity(), hub_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        hub_logging.set_verbosity(logging.ERROR)
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(level)
            hub_logging.set_verbosity(hub_level)
            if bars:
                transformers_logging.enable_progress_bar()
