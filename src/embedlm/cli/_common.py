"""What several commands share: choosing a model, and printing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.errors import InputError, ModelError, RecipeError
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
    "Prompting",
    "Quoting",
    "Split",
    "TextField",
    "TextPath",
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


def repeated(text: str, name: str | None = None, metavar: str | None = None) -> Parameter:
    """Return an option that may be given several times."""
    help = f"{text} (repeat)."
    return Parameter(name=name, negative=(), show_default=False, metavar=metavar, help=help)


Json = Annotated[bool, flag("Print JSON for programs.", "--json")]


Model = Annotated[
    str | None,
    Parameter(
        name=["--model", "-m"],
        group="Model",
        metavar="MODEL",
        help="Folder or hub id; without it the built-in model.",
    ),
]


Adapters = Annotated[tuple[str, ...], repeated("Adapter to apply, in order", "--adapter", "MODEL")]
Device = Annotated[
    str | None,
    Parameter(metavar="DEVICE", help="cpu, cuda, cuda:1 or mps; without it the fastest one here."),
]
Dtype = Annotated[
    str, Parameter(metavar="DTYPE", help="auto, float32, bfloat16, float16, int8 or fp8.")
]
TextPath = Annotated[
    str,
    Parameter(
        name="FILE_OR_DIR",
        allow_leading_hyphen=True,
        help="Text (.txt, .md, .rst, .html, .pdf) or records (.jsonl, .csv, .tsv, .parquet), each "
        "also with .gz, .xz or .zst; or a folder of these; - reads text from standard input.",
    ),
]
Split = Annotated[
    str,
    Parameter(metavar="WHERE", help="paragraph: text is cut at blank lines; line: at every line."),
]
TextField = Annotated[str, Parameter(metavar="FIELD", help="Field or column that holds the text.")]
Quoting = Annotated[
    bool | None,
    Parameter(help="Whether cells of .csv and .tsv may be quoted; without it those of .csv may."),
]


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class Loading:
    """How a model is loaded: recipe, adapters, device and dtype."""

    recipe: Annotated[
        str | None,
        Parameter(
            name=["--recipe", "-r"],
            metavar="RECIPE",
            help="A name (see embedlm recipes) or a .yaml file; without it the model's own.",
        ),
    ] = None
    change: Annotated[
        tuple[str, ...],
        repeated("Change a field of the recipe: pooling.kind=mean", "--set", "FIELD=VALUE"),
    ] = ()
    adapter: Adapters = ()
    device: Device = None
    dtype: Dtype = "auto"
    generator: Annotated[
        str | None,
        Parameter(
            metavar="MODEL",
            help="The model that writes the variants for the recipe geneol: a folder, a hub id, or "
            "http://host/v1#model.",
        ),
    ] = None

    def load(self, model: str | None, recipe: str | None = None, heads: Any = None) -> Embedder:
        """Load a model.

        Args:
            model: folder or hub id; None: the built-in one.
            recipe: the recipe to take where no --recipe was given.
            heads: the heads that the command will ask for; None: the recipe's.
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
    from embedlm.backbone import gguf_folder
    from embedlm.persistence import derive_recipe
    from embedlm.schema.recipe import Recipe

    if name is not None:
        return Recipe.load(name)
    if model is None:
        raise InputError("--set changes a recipe's field; say which recipe's: --recipe NAME")
    return derive_recipe(gguf_folder(model))


@Parameter(name="*", group="Prompt")
@dataclass(frozen=True)
class Prompting:
    """What the prompt puts around the texts."""

    role: Annotated[
        str | None,
        Parameter(metavar="ROLE", help="query, document, or a name that the recipe defines."),
    ] = None
    instruction: Annotated[
        str | None,
        Parameter(
            metavar="TEXT",
            help='Takes the place of {instruction} in the prompt; "" for none; without it the '
            "recipe's.",
        ),
    ] = None
    demonstrations: Annotated[
        str | None,
        Parameter(
            metavar="FILE",
            help="File with the fields instruct, query and response: .json or .yaml (a list), "
            ".jsonl, .csv, .tsv or .parquet.",
        ),
    ] = None
    encode_adapter: Annotated[
        str | None,
        Parameter(
            metavar="NAME",
            help="The switchable adapter to use, or none; without it the one for the role.",
        ),
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
    """Return the demonstrations of a file: a JSON or YAML list, or records of any form."""
    from embedlm.data import Source
    from embedlm.data.forms import file_form
    from embedlm.jobs.json_files import read_json

    if path is None:
        return None
    file = Path(path)
    form, _ = file_form(file)
    demonstrations: list[Any]
    if file.suffix.lower() in (".yaml", ".yml"):
        demonstrations = _yaml_list(file)
    elif form is None and _begins_a_list(file):
        demonstrations = read_json(file, InputError)
    else:
        demonstrations = []
        for row in Source(file, form=form or "jsonl").rows():
            if row.error is not None:
                raise InputError(f"{path}:{row.line}: {row.error}; {_SHAPE}")
            demonstrations.append(row.value)
    for number, shot in enumerate(demonstrations, 1):
        if not isinstance(shot, dict) or not all(isinstance(v, str) for v in shot.values()):
            raise InputError(f"{path!r}: entry {number} is not an object of strings; {_SHAPE}")
    return demonstrations


def _yaml_list(file: Path) -> list[Any]:
    try:
        value = parse_yaml(file.read_text(encoding="utf-8-sig"), file.name)
    except OSError as error:
        raise InputError(f"cannot read the demonstrations {str(file)!r}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{str(file)!r} is not valid UTF-8; save it as UTF-8") from error
    except RecipeError as error:
        raise InputError(str(error)) from error
    if not isinstance(value, list):
        raise InputError(f"{str(file)!r} holds no list; {_SHAPE}")
    return value


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
        raise InputError(
            f"--weights {text!r}: write one number for each head, e.g. 0.7,0.3"
        ) from error


def emit(value: Any) -> None:
    """Print a value as JSON.

    Raises:
        ModelError: a number is NaN or infinite, which JSON cannot hold.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ModelError(
            "the result holds NaN or infinity, so nothing was printed; the model's numbers have "
            "left the range of its dtype: try --dtype float32"
        ) from error
    print(text)


def show_hits(hits: list[Hit], *, json: bool) -> None:
    """Print each passage with its score, file and line: on a line of its own, or as JSON."""
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
