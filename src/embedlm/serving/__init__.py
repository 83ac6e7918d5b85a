"""The server: HTTP in the forms of OpenAI, TEI, Cohere and Jina, and MCP for agents.

`create_app` and what it takes need the extra `serve`, so they are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedlm.errors import require

if TYPE_CHECKING:
    from embedlm.serving.app import create_app
    from embedlm.serving.keys import Keys
    from embedlm.serving.models import Models
    from embedlm.serving.mounted import Mounted
    from embedlm.serving.service import Service
    from embedlm.serving.settings import Limits
    from embedlm.serving.tracing import Tracing

__all__ = ["Keys", "Limits", "Models", "Mounted", "Service", "Tracing", "create_app"]

_PLACES = {
    "create_app": "app",
    "Keys": "keys",
    "Limits": "settings",
    "Tracing": "tracing",
    "Models": "models",
    "Mounted": "mounted",
    "Service": "service",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'embedlm.serving' has no attribute {name!r}")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve")
    return getattr(import_module(f"embedlm.serving.{_PLACES[name]}"), name)
