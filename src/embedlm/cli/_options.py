"""Options of the commands: each is defined once, alone or in a group that commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from embedlm.cli._kinds import flag, natural, number, path, paths, repeated, whole
from embedlm.cli._values import parse_changes, read_demonstrations
from embedlm.errors import InputError

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.rerank import Reranker
    from embedlm.schema.recipe import Recipe
    from embedlm.search import Passage

__all__ = [
    "AS_IS",
    "AS_LOADED",
    "AS_RENDERED",
    "AS_TABLES",
    "AS_WRITTEN",
    "Adapters",
    "Data",
    "Device",
    "Dtype",
    "Encoding",
    "Heads",
    "Json",
    "Loading",
    "MaxLength",
    "Model",
    "ModelName",
    "PassageOptions",
    "Prompting",
    "RecipeName",
    "SaveDtype",
    "Tables",
    "TextPath",
    "TopK",
    "Weights",
    "flag",
    "natural",
    "number",
    "path",
    "paths",
    "repeated",
    "whole",
]


# -- options that several commands have -------------------------------------------------------

Json = Annotated[bool, flag("Print JSON for programs.", "--json")]
Model = Annotated[
    str | None,
    path(
        "Folder, hub id or GGUF file; without it the built-in model, with --recipe builtin-base.",
        ["--model", "-m"],
        "MODEL",
        group="Model",
    ),
]
RecipeName = Annotated[
    str | None,
    path(
        "A name (see embedlm recipes) or a .yaml file; without it the model's own.",
        ["--recipe", "-r"],
        "RECIPE",
    ),
]
ModelName = Annotated[str, path("Folder, hub id or GGUF file, or builtin.", "MODEL", None)]
Adapters = Annotated[
    tuple[str, ...],
    repeated(
        "Adapter to apply to the model, a folder or hub id; several are applied in order",
        "--adapter",
        "MODEL",
        converter=paths,
    ),
]
Device = Annotated[
    str | None,
    Parameter(metavar="DEVICE", help="cpu, cuda, cuda:1 or mps; without it the fastest one here."),
]
Dtype = Annotated[
    str,
    Parameter(
        metavar="DTYPE",
        help="Number format that the model runs in: auto (what suits its files and this machine), "
        "float32, bfloat16, float16, int8 or fp8.",
    ),
]
TextPath = Annotated[
    str,
    path(
        "Text (.txt, .md, .rst, .html, .pdf) or records (.jsonl, .csv, .tsv, .parquet), each also "
        "with .gz, .xz or .zst; or a folder of these; - reads text from standard input.",
        "FILE_OR_DIR",
        None,
        allow_leading_hyphen=True,
    ),
]
Heads = Annotated[
    str | None,
    Parameter(
        metavar="HEAD,...",
        help="dense, sparse, multi_vector, as far as the recipe defines them; with options "
        "dense,{sparse: {top_k: 128}}. Without it those of the recipe.",
    ),
]
Weights = Annotated[
    str | None,
    Parameter(
        metavar="NUMBER,...",
        help="A weight for each, e.g. 0.7,0.3; without it all weigh the same.",
    ),
]
SaveDtype = Annotated[
    str | None,
    Parameter(
        name="--dtype",
        metavar="DTYPE",
        help="Numbers of the weights: float32, bfloat16, float16, or int8 (matrices by row, which "
        "only EmbedLM opens). Without it: those of the model.",
    ),
]
MaxLength = Annotated[
    int | None,
    whole(
        "Shorten the text, not the prompt, to N tokens in all; without it to as many as the model "
        "reads.",
        "--max-length",
    ),
]
TopK = Annotated[int, whole("Number of results to print.", ["--top-k", "-k"])]
Data = Annotated[
    str | None,
    path(
        "Folder that holds the data sets; without it the one that EMBEDLM_DATA names.", None, "DIR"
    ),
]


# -- groups of options that commands share ----------------------------------------------------


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class Loading:
    """How a model is loaded: recipe, adapters, device and dtype."""

    recipe: RecipeName = None
    change: Annotated[
        tuple[str, ...],
        repeated("Change a field of the recipe: pooling.kind=mean", "--set", "FIELD=VALUE"),
    ] = ()
    adapter: Adapters = ()
    device: Device = None
    dtype: Dtype = "auto"
    generator: Annotated[
        str | None,
        path(
            "The model that writes the variants for the recipe geneol: a folder, a hub id, or "
            "http://host/v1#model; without it the embedding model itself.",
            metavar="MODEL",
        ),
    ] = None

    def load(
        self,
        model: str | None,
        recipe: str | None = None,
        heads: Any = None,
        merge: bool | None = None,
        max_length: int | None = None,
    ) -> Embedder:
        """Load a model.

        Args:
            model: folder or hub id; None: the built-in one.
            recipe: the recipe to take where no --recipe was given.
            heads: the heads that the command will ask for; None: the recipe's.
            merge: see `embedlm.load`.
            max_length: see there.

        Raises:
            InputError: --generator, and the recipe rewrites no texts.
        """
        import embedlm

        chosen: Any = self.recipe if self.recipe is not None else recipe
        if changes := parse_changes(self.change):
            chosen = _recipe(model, chosen).override(changes)
        if self.generator is not None:
            _check_rewrites(_known_recipe(model, chosen))
        loaded: Embedder = embedlm.load(
            model,
            chosen,
            device=self.device,
            dtype=self.dtype,
            adapters=self.adapter,
            merge=merge,
            max_length=max_length,
            generator=self.generator,
            lm_head=heads is not None and _reads_lm_head(heads, _known_recipe(model, chosen)),
        )
        return loaded

    def reranker(self, model: str, *, adapters: bool = True) -> Reranker:
        """Load a re-ranker, which has no recipe.

        Args:
            model: folder or hub id.
            adapters: whether those that were given are its own.

        Raises:
            InputError: an option that it cannot take.
        """
        from embedlm.rerank import Reranker

        named = {"--recipe": self.recipe, "--set": self.change, "--generator": self.generator}
        if given := [name for name, value in named.items() if value]:
            raise InputError(
                f"{model!r} is a re-ranker, which has no {' and no '.join(given)}; leave out what "
                "it cannot take"
            )
        own = self.adapter if adapters else ()
        return Reranker(model, device=self.device, dtype=self.dtype, adapters=own)


def _check_rewrites(recipe: Recipe) -> None:
    if recipe.transform is None:
        raise InputError(
            f"--generator names the model that rewrites texts, and the recipe {recipe.name!r} "
            "rewrites none; take a recipe that does (geneol), or leave --generator out"
        )


def _reads_lm_head(heads: Any, recipe: Recipe) -> bool:
    """Tell whether one of these heads reads the language-model head."""
    from embedlm.readout.heads import make_heads, requested_heads

    chosen = requested_heads(heads, recipe, several=False)
    return any(head.reads_lm_head for head in make_heads(chosen))


def _known_recipe(model: str | None, chosen: Any) -> Recipe:
    """Return the recipe that loading will take; that of the built-in model reads no other head."""
    from embedlm.schema.recipe import Recipe

    return Recipe.load("plain-mean") if model is chosen is None else _recipe(model, chosen)


def _recipe(model: str | None, name: Any) -> Recipe:
    from embedlm.loader import model_source
    from embedlm.persistence import derive_recipe
    from embedlm.schema.recipe import Recipe

    if name is not None:
        return Recipe.load(name)
    if model is None:
        raise InputError("--set changes a recipe's field; say which recipe's: --recipe NAME")
    return derive_recipe(model_source(model))


@Parameter(name="*", group="Prompt")
@dataclass(frozen=True)
class Prompting:
    """What the prompt puts around the texts."""

    role: Annotated[
        str | None,
        Parameter(
            metavar="ROLE",
            help="query, document, or a name that the recipe defines; without it the recipe's "
            "default prompt, else that of a document.",
        ),
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
        path(
            "File with the fields instruct, query and response: .json or .yaml (a list), "
            ".jsonl, .csv, .tsv or .parquet; without it the recipe's."
        ),
    ] = None

    def options(self) -> dict[str, Any]:
        """Return those options of `Embedder.encode` and `render` that were given."""
        options = {
            "role": self.role,
            "instruction": self.instruction,
            "demonstrations": read_demonstrations(self.demonstrations),
        }
        return {name: value for name, value in options.items() if value is not None}


@Parameter(name="*", group="Prompt")
@dataclass(frozen=True)
class Encoding(Prompting):
    """A prompt, and the adapter that texts are run through."""

    encode_adapter: Annotated[
        str | None,
        Parameter(
            metavar="NAME",
            help="The switchable adapter to use, or none; without it the one for the role.",
        ),
    ] = None

    def options(self) -> dict[str, Any]:
        """Return those options of `Embedder.encode` that were given."""
        name = self.encode_adapter
        adapter = {} if name is None else {"adapter": None if name == "none" else name}
        return {**super().options(), **adapter}


@Parameter(name="*", group="Input")
@dataclass(frozen=True)
class Tables:
    """How records are read."""

    text_field: Annotated[
        str, Parameter(metavar="FIELD", help="Field or column that holds the text.")
    ] = "text"
    quoting: Annotated[
        bool | None,
        Parameter(
            help="Whether cells of .csv and .tsv may be quoted; without it those of .csv may."
        ),
    ] = None


@Parameter(name="*", group="Input")
@dataclass(frozen=True)
class PassageOptions(Tables):
    """How files are cut into passages."""

    split: Annotated[
        str | None,
        Parameter(
            metavar="WHERE",
            help="Where .txt, .md and .rst are cut: paragraph (at blank lines; the default) or "
            "line.",
        ),
    ] = None

    def read(self, path: str, model: Embedder | None = None) -> list[Passage]:
        """Return the passages of a file or folder: those of prose so short that a model reads them.

        Args:
            path: the file or folder.
            model: the one that is to read them whole; None: of the usual length.
        """
        from embedlm.search import read_passages, reads_whole

        return read_passages(
            path,
            split=self.split,
            text_field=self.text_field,
            quoting=self.quoting,
            fits=None if model is None else reads_whole(model),
        )


AS_LOADED = Loading()
AS_RENDERED = Prompting()
AS_IS = Encoding()
AS_TABLES = Tables()
AS_WRITTEN = PassageOptions()
