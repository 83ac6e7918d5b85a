"""`embedlm recipes`: what systems there are, and what they are made of."""

from __future__ import annotations

from shutil import get_terminal_size
from textwrap import wrap
from typing import Annotated

from cyclopts import App

from embedlm.cli._options import Json, path
from embedlm.cli._values import emit

__all__ = ["app"]

_NARROWEST, _WIDEST = 60, 120
"""Columns that the list takes at least and at most."""

app = App(
    name="recipes",
    usage="Usage: embedlm recipes [OPTIONS]\n       embedlm recipes COMMAND",
    help="List the recipes, show one, or print the schema of a recipe file.",
    help_epilogue="""Examples:
  embedlm recipes
  embedlm recipes show prompteol > mine.yaml
  embedlm encode texts.txt -r mine.yaml -o vectors.npy
  embedlm recipes schema > recipe.schema.json""",
)


@app.default
def list_recipes(*, json: Json = False) -> None:
    """List the recipes, show one, or print the schema of a recipe file."""
    from embedlm.schema.recipe import Recipe, recipes

    all_recipes = [Recipe.load(name) for name in recipes()]
    if json:
        emit(
            [
                {
                    "name": recipe.name,
                    "summary": recipe.summary,
                    "paper": recipe.paper,
                    "citation": recipe.citation,
                    "section": recipe.section,
                }
                for recipe in all_recipes
            ]
        )
        return
    width = max(len(recipe.name) for recipe in all_recipes) + 2
    columns = max(_NARROWEST, min(_WIDEST, get_terminal_size().columns))
    for recipe in all_recipes:
        source = f" ({recipe.paper})" if recipe.paper else ""
        lines = wrap(f"{recipe.summary}{source}", columns - width, break_on_hyphens=False)
        print(f"{recipe.name:<{width}}" + f"\n{'':<{width}}".join(lines))


@app.command(
    name="show",
    help_epilogue="""Examples:
  embedlm recipes show prompteol
  embedlm recipes show mine.yaml --json""",
)
def show(
    name: Annotated[str, path("A name from the list, or a .yaml file.", "NAME", None)],
    /,
    *,
    json: Json = False,
) -> None:
    """Print a recipe as YAML, ready to be changed and used."""
    from embedlm.schema.recipe import Recipe

    recipe = Recipe.load(name)
    if json:
        emit(recipe.model_dump(mode="json"))
    else:
        print(recipe.dump(), end="")


@app.command(
    name="schema",
    help_epilogue="""Examples:
  embedlm recipes schema > recipe.schema.json""",
)
def schema() -> None:
    """Print the JSON Schema of a recipe file, for editors."""
    from embedlm.schema.recipe import Recipe

    emit(Recipe.json_schema())
