"""Saving a model whose roles are read by networks of their own, as a Router's folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from embedlm.errors import UnsupportedError
from embedlm.persistence.expressible import Form, form_of
from embedlm.persistence.input_files import save_input
from embedlm.persistence.written import RouteFiles, Writer, outline_of, write_routes
from embedlm.readout.projection import save_layer

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["write_router"]


def write_router(embedder: Embedder, folder: Path, save_dtype: str | None) -> Form:
    """Write every route of a model, and return the form in which the folder is opened.

    There is no recipe beside it: each route's is what its files say.

    Raises:
        UnsupportedError: numbers that the layout does not know.
    """
    if save_dtype == "int8":
        raise UnsupportedError(
            f"{embedder.name!r} has several networks (a Router), which are not saved as int8; take "
            "bfloat16"
        )
    forms: dict[str, Form] = {}
    files: dict[str, RouteFiles] = {}
    routes = {role: one for role, one in embedder.routes.items() if role is not None}
    for role, one in routes.items():
        form = form_of(one)
        if form is None:
            raise UnsupportedError(
                f"the route {role!r} of {embedder.name!r} cannot be written as a Router's; it was "
                "changed in a way that sentence-transformers cannot express"
            )
        forms[role] = form
        length = one.renderer.max_length(role)
        same = (other for other in files if _share(one, routes[other], files[other], length))
        network: Writer = partial(save_input, one, save_dtype=save_dtype, eos=form.prefixes.eos)
        outline = outline_of(one, form, length)
        files[role] = RouteFiles(outline, network, _layers(one), next(same, None))
    default = embedder.routes.get(None)
    named = next((role for role, one in routes.items() if one is default), None)
    write_routes(files, named, folder)
    return next(iter(forms.values()))


def _share(one: Embedder, other: Embedder, written: RouteFiles, length: int | None) -> bool:
    """Tell whether two routes have one network that reads texts alike."""
    alike = one.recipe.prompt.clean == other.recipe.prompt.clean
    return one.backbone is other.backbone and alike and written.outline.max_length == length


def _layers(embedder: Embedder) -> list[tuple[str, Writer]]:
    parts = embedder.readout.parts.read_by(embedder.recipe)
    layers = [] if parts.projection is None else parts.projection.parts()
    return [(layer.kind, partial(save_layer, layer)) for layer in layers]
