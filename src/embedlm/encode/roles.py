"""The roles of texts; some models read each by its own network (sentence-transformers' Router)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from embedlm.encode.options import UNSET, in_role
from embedlm.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Roles", "routed"]


def routed(name: Any, hindrance: str) -> UnsupportedError:
    """Return the refusal of what can be done to one network alone, of a model with routes."""
    return UnsupportedError(
        f"{name!r} reads queries and documents by networks of their own (a Router), and {hindrance}"
    )


class Roles:
    """What an Embedder does by role."""

    name: str
    routes: Mapping[str | None, Embedder]
    """What reads the texts of a role; None: of no role. Empty: one network reads all."""

    def encode_query(self, texts: Any = UNSET, **options: Any) -> Any:
        """Encode with role "query", unless the call names another; options as in `encode`."""
        return cast("Embedder", self).encode(texts, **in_role("query", options))

    def encode_document(self, texts: Any = UNSET, **options: Any) -> Any:
        """Encode with role "document", unless the call names another; options as in `encode`."""
        return cast("Embedder", self).encode(texts, **in_role("document", options))

    def route(self, role: str | None) -> Embedder:
        """Return what reads the texts of a role: this embedder itself, unless it has routes.

        Raises:
            InputError: there is no route for the role.
        """
        if not self.routes:
            return cast("Embedder", self)
        if role not in self.routes and (role in ("query", "document") or None not in self.routes):
            known = ", ".join(repr(name) for name in self.routes)
            raise InputError(
                f"the role is {role!r}, and {self.name!r} reads texts by routes: it has some for "
                f"{known}. Give one of these as role"
            )
        return self.routes.get(role) or self.routes[None]

    def takes_instruction(self, role: str | None) -> bool:
        """Tell whether the prompt of a role has a place for an instruction."""
        one = self.routes.get(role, self.routes.get(None)) if self.routes else self.route(role)
        return one is not None and one.renderer.takes_instruction(role)

    def check_one_route(self, what: str) -> None:
        """Refuse what can be done to one network alone.

        Args:
            what: that is refused, as what cannot be done to the model: "trained".

        Raises:
            UnsupportedError: the model has routes.
        """
        if self.routes:
            raise routed(self.name, f"cannot be {what}; take a model of one network")
