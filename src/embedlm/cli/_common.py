"""What several commands share: choosing a model, and printing."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.errors import InputError, RecipeError
from embedlm.schema.yaml_files import parse_yaml

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.search import Hit

__all__ = [
    "AS_IS",
    "AS_LOADED",
    "Adapters",
    "Device",
    "Dtype",
    "Json",
    "Loading",
    "Model",
    "Place",
    "Prompting",
    "Quoting",
    "Split",
    "TextField",
    "emit",
    "flag",
    "parse_heads",
    "parse_weights",
    "read_demonstrations",
    "repeated",
    "show_hits",
]


def flag(text: str, name: str | None = None) -> Parameter:
    """Return a switch without a --no- form."""
    return Parameter(name=name, negative=(), show_default=False, help=text)


def repeated(text: str, name: str | None = None) -> Parameter:
    """Return an option that may be given several times."""
    return Parameter(name=name, negative=(), show_default=False, help=f"{text} (repeat).")


Json = Annotated[bool, flag("Print JSON for programs.", "--json")]


Model = Annotated[
    str | None,
    Parameter(
        name=["--model", "-m"],
        group="Model",
        help="Folder or hub id; without it the built-in model.",
    ),
]


Adapters = Annotated[tuple[str, ...], repeated("Adapter to apply, in order", "--adapter")]
Device = Annotated[
    str | None, Parameter(help="cpu, cuda, cuda:1, mps; without it the best there is.")
]
Dtype = Annotated[str, Parameter(help="auto, float32, bfloat16, float16, int8 or fp8.")]
Place = Annotated[
    str,
    Parameter(
        name="FILE_OR_DIR",
        allow_leading_hyphen=True,
        help="Text (.txt, .md, .rst), records (.jsonl, .csv, .tsv, .parquet), each also with .gz, "
        ".xz or .zst, or a folder of these; - reads text from standard input.",
    ),
]
Split = Annotated[
    str, Parameter(help="paragraph: text is cut at blank lines; line: at every line.")
]
TextField = Annotated[str, Parameter(help="Field or column with the text.")]
Quoting = Annotated[
    bool | None,
    Parameter(
        help="Cells of .csv and .tsv may stand in quotes, or not; without it those of .csv may."
    ),
]


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class Loading:
    """By which recipe and where a model is loaded."""

    recipe: Annotated[
        str | None,
        Parameter(
            name=["--recipe", "-r"],
            help="Name (embedlm recipes) or .yaml file; without it the model's own.",
        ),
    ] = None
    change: Annotated[
        tuple[str, ...], repeated("Change a recipe's field: pooling.kind=mean", "--set")
    ] = ()
    adapter: Adapters = ()
    device: Device = None
    dtype: Dtype = "auto"
    generator: Annotated[
        str | None,
        Parameter(help="Writes for recipe geneol: a model folder, or http://host/v1#model."),
    ] = None

    def load(self, model: str | None, recipe: str | None = None, heads: Any = None) -> Embedder:
        """Load a model.

        Args:
            model: folder or hub id; None: the built-in one.
            recipe: stands in where no --recipe was given.
            heads: those that the command will ask for, on top of the recipe's.
        """
        import embedlm

        chosen: Any = self.recipe if self.recipe is not None else recipe
        changes = dict(map(_change, self.change))
        if changes:
            chosen = _recipe(model, chosen).override(changes)
        loaded: Embedder = embedlm.load(
            model,
            chosen,
            device=self.device,
            dtype=self.dtype,
            adapters=self.adapter,
            generator=self.generator,
            lm_head=_reads_lm_head(heads, model, chosen),
        )
        return loaded


def _reads_lm_head(heads: Any, model: str | None, recipe: Any) -> bool:
    """Tell whether one of these heads reads the language-model head."""
    from embedlm.readout.heads import make_heads, requested_heads
    from embedlm.schema.recipe import Recipe

    if heads is None:
        return False
    plain = model is None and recipe is None
    known = Recipe.load("plain-mean") if plain else _recipe(model, recipe)
    return any(
        head.reads_lm_head for head in make_heads(requested_heads(heads, known, several=False))
    )


def _recipe(model: str | None, name: Any) -> Any:
    from embedlm.persistence import derive_recipe
    from embedlm.schema.recipe import Recipe

    if name is not None:
        return Recipe.load(name)
    if model is None:
        raise InputError("--set changes a recipe's field; say which recipe's: --recipe NAME")
    return derive_recipe(model)


@Parameter(name="*", group="Prompt")
@dataclass(frozen=True)
class Prompting:
    """What goes around the texts."""

    role: Annotated[
        str | None, Parameter(help="query, document, or a name that the recipe defines.")
    ] = None
    instruction: Annotated[
        str | None, Parameter(help='Fills the prompt; "" for none; without it the recipe\'s.')
    ] = None
    demonstrations: Annotated[
        str | None,
        Parameter(
            help="File with the fields instruct, query and response: .json (a list), .jsonl, .csv, "
            ".tsv or .parquet."
        ),
    ] = None
    encode_adapter: Annotated[
        str | None,
        Parameter(help="Of switchable adapters the one to use, or none; without it the role's."),
    ] = None

    def options(self) -> dict[str, Any]:
        """Return the options of `Embedder.encode` that were given."""
        name = self.encode_adapter
        adapter = {} if name is None else {"adapter": None if name == "none" else name}
        return {**self.around(), **adapter}

    def around(self) -> dict[str, Any]:
        """Return the options of `Embedder.render` that were given."""
        options = {
            "role": self.role,
            "instruction": self.instruction,
            "demonstrations": read_demonstrations(self.demonstrations),
        }
        return {name: value for name, value in options.items() if value is not None}


AS_LOADED = Loading()
AS_IS = Prompting()
_SHAPE = 'write objects {"instruct": ..., "query": ..., "response": ...}, a line each or as a list'


def _change(text: str) -> tuple[str, Any]:
    """Return field and value of `field=value`, the value read as YAML."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InputError(f"--set {text!r}: write field=value, e.g. pooling.kind=mean")
    try:
        return name, parse_yaml(value, "the value")
    except RecipeError as error:
        problem = str(error).partition("not valid YAML: ")[2] or error
        raise InputError(f"--set {text!r}: the value is not valid YAML: {problem}") from error


def read_demonstrations(path: str | None) -> list[dict[str, str]] | None:
    """Return the demonstrations of a file: a JSON list, or records of any form."""
    from embedlm.data import Source
    from embedlm.data.forms import file_form
    from embedlm.jobs.json_files import read_json

    if path is None:
        return None
    file = Path(path)
    form, _ = file_form(file)
    demonstrations: list[Any]
    if form is None and _begins_a_list(file):
        demonstrations = read_json(file, InputError)
    else:
        demonstrations = []
        for row in Source(file, form=form or "jsonl").rows():
            if row.error is not None:
                raise InputError(f"{path}:{row.line}: {row.error}; {_SHAPE}")
            demonstrations.append(row.value)
    for number, one in enumerate(demonstrations, 1):
        if not isinstance(one, dict) or not all(isinstance(v, str) for v in one.values()):
            raise InputError(f"{path!r}: entry {number} is no object of strings; {_SHAPE}")
    return demonstrations


def _begins_a_list(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as handle:
            return handle.read(4096).lstrip().startswith("[")
    except OSError as error:
        raise InputError(f"cannot read the demonstrations {str(file)!r}: {error}") from error


def parse_heads(text: str | None) -> list[Any] | None:
    """Return the heads of `dense,sparse` or of a YAML list with options."""
    if text is None:
        return None
    try:
        return list(parse_yaml(f"[{text}]", f"--heads {text!r}"))
    except RecipeError as error:
        raise InputError(
            f"{error}; write names with commas between, or with options: "
            "dense,{sparse: {top_k: 128}}"
        ) from error


def parse_weights(text: str | None) -> list[float] | None:
    """Return the numbers of `0.7,0.3`."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--weights {text!r}: write a number a head, e.g. 0.7,0.3") from error


def emit(value: Any) -> None:
    """Print a value as JSON."""
    json.dump(value, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")


def show_hits(hits: list[Hit], *, json: bool) -> None:
    """Print passages with score, file and line, a line each or as JSON."""
    if json:
        emit(
            [
                {
                    "rank": hit.rank,
                    "score": hit.score,
                    "file": hit.passage.file,
                    "line": hit.passage.line,
                    "text": hit.passage.text,
                }
                for hit in hits
            ]
        )
        return
    for hit in hits:
        text = " ".join(hit.passage.text.split())
        text = text if len(text) <= 200 else text[:197] + "..."
        print(f"{hit.score:.4f}  {hit.passage.file}:{hit.passage.line}  {text}")
