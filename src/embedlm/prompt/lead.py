"""A prompt of the caller's own, in place of the recipe's."""

from __future__ import annotations

from typing import Any

from embedlm.prompt.render import Renderer
from embedlm.schema.template import escape

__all__ = ["with_lead"]


def with_lead(renderer: Renderer, lead: str | None, role: str | None) -> Renderer:
    """Return a renderer that writes `lead` before each text in place of any template.

    A role whose template closes with {eos} still closes with it.

    Args:
        renderer: of a recipe.
        lead: plain text; "" leaves the texts bare; None keeps the recipe's prompt.
        role: of the call.
    """
    if lead is None:
        return renderer
    closing = "{eos}" if renderer.templates(role)[0].endswith("{eos}") else ""
    template = f"{escape(lead)}{{text}}{closing}"
    changes: dict[str, Any] = {
        "default": template,
        "query": None,
        "document": None,
        "roles": dict.fromkeys(renderer.prompt.roles, template),
        "demonstrations": (),
    }
    return renderer.with_prompt(renderer.prompt.model_copy(update=changes))
