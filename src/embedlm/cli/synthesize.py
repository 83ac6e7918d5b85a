"""`embedlm synthesize`: training records made with a language model."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import Json, flag, natural, number, path, repeated, whole
from embedlm.cli._record_options import AS_RECORDS, RecordJobOptions
from embedlm.cli._values import emit, parse_changes
from embedlm.errors import InputError

__all__ = ["EXAMPLES", "NAME", "USAGE", "command"]

NAME = "synthesize"
USAGE = "Usage: embedlm synthesize [OPTIONS] [PIPELINE [INPUT]]"
EXAMPLES = r"""Examples:
  embedlm synthesize
  embedlm synthesize inpars --show > mine.yaml
  embedlm synthesize inpars passages.jsonl -o records.jsonl \
      --llm http://localhost:8000/v1#writer
  embedlm synthesize mine.yaml passages.jsonl --llm model.gguf --count 1000 \
      -o records.jsonl
  embedlm synthesize e5-short-long --llm http://localhost:8000/v1#writer \
      --count 50 --language German --language French -o records.jsonl"""


@Parameter(name="*", group="Language model")
@dataclass(frozen=True)
class Writing:
    """What writes, and how it is asked."""

    llm: Annotated[
        str | None,
        path(
            "What writes: a model folder, GGUF file, hub id or http://host/v1#model.",
            None,
            "MODEL",
        ),
    ] = None
    concurrency: Annotated[
        int | None, whole("Requests in flight at an endpoint; without it 8.")
    ] = None
    per_minute: Annotated[
        float | None, number("Requests that an endpoint is sent in a minute, at most.")
    ] = None
    timeout: Annotated[
        float | None, number("Seconds to wait for one answer of an endpoint; without it 60.", "S")
    ] = None
    patience: Annotated[
        float | None,
        number("Seconds to wait for an endpoint that has stopped answering; without it 600.", "S"),
    ] = None

    def generator(self) -> Any:
        """Return what writes.

        Raises:
            InputError: options of an endpoint, and there is none.
        """
        from embedlm.generation import EndpointGenerator, resolve_generator

        names = ("concurrency", "per_minute", "timeout", "patience")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if 0 in given.values():
            name = next(name for name, value in given.items() if value == 0)
            raise InputError(f"--{name.replace('_', '-')} is 0; give a number above 0")
        writer = None if self.llm is None else resolve_generator(self.llm)
        if not given:
            return writer
        if not isinstance(writer, EndpointGenerator):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"{options}: for endpoints, and --llm names none; leave it out")
        return EndpointGenerator(writer.base_url, writer.model, **given)


@Parameter(name="*", group="Pipeline")
@dataclass(frozen=True)
class Making:
    """What is made of what."""

    count: Annotated[
        int | None,
        whole(
            "Items of the input to take, drawn by the seed, without it all; of a pipeline without "
            "input, requests to begin with, without it 1."
        ),
    ] = None
    language: Annotated[
        tuple[str, ...],
        repeated("Language to write in; without it the pipeline's", "--language", "NAME"),
    ] = ()
    change: Annotated[
        tuple[str, ...],
        repeated("Change a field: steps.query.temperature=0", "--set", "FIELD=VALUE"),
    ] = ()
    corpus: Annotated[
        str | None, path("Passages that steps search; without it the input.", None)
    ] = None
    reranker: Annotated[
        str | None, path("Folder or hub id of a re-ranker, for filters.", None, "MODEL")
    ] = None
    held_out: Annotated[
        tuple[str, ...],
        repeated("Evaluation set: what holds its words is set aside", "--held-out", "FILE"),
    ] = ()
    seed: Annotated[int, natural("Seed of all that is drawn.")] = 0
    price: Annotated[
        str | None,
        Parameter(metavar="IN,OUT", help="Cost of a million tokens read, and of one written."),
    ] = None
    work: Annotated[
        str | None, path("Folder for vectors and indexes, kept for other runs.", None, "DIR")
    ] = None

    cache: Annotated[str | None, path("Cache of generated texts; without it the default one.")] = (
        None
    )

    def options(self) -> dict[str, Any]:
        """Return the options of `embedlm.synthesize`."""
        options = asdict(self)
        options["languages"] = options.pop("language")
        options["changes"] = parse_changes(options.pop("change"))
        options["prices"] = _prices(options.pop("price"))
        return options


NO_WRITER, AS_MADE = Writing(), Making()


PipelineName = Annotated[
    str | None,
    path("A name or a .yaml file; without it the pipelines are listed.", "PIPELINE", None),
]
Rows = Annotated[
    str | None,
    path(
        "What the pipeline reads: passages (a file, or a folder of documents), queries or records.",
        "INPUT",
        None,
        allow_leading_hyphen=True,
    ),
]


def command(
    pipeline: PipelineName = None,
    rows: Rows = None,
    /,
    *,
    output: Annotated[str | None, path("A .jsonl file.", ["--output", "-o"])] = None,
    writing: Writing = NO_WRITER,
    making: Making = AS_MADE,
    model: Annotated[
        str | None,
        path(
            "Embedder that searches the corpus, or bm25; without it the built-in model.",
            ["--model", "-m"],
            "MODEL",
            group="Model",
        ),
    ] = None,
    job: RecordJobOptions = AS_RECORDS,
    show: Annotated[bool, flag("Print the pipeline as YAML and end.")] = False,
    json: Json = False,
) -> None:
    """Make training records with a language model, by a pipeline of steps."""
    from embedlm.schema.pipeline import Pipeline, pipelines

    if pipeline is None:
        _list([Pipeline.load(name) for name in pipelines()], json=json)
        return
    if show:
        if json:
            emit(Pipeline.load(pipeline).model_dump(mode="json"))
        else:
            print(Pipeline.source(pipeline), end="")
        return
    Pipeline.load(pipeline)  # a misspelt name is told first
    if output is None:
        raise InputError("no output was named; give a .jsonl file: -o records.jsonl")
    from embedlm.synthesis import synthesize

    made = synthesize(
        pipeline,
        rows,
        llm=writing.generator(),
        output=output,
        model=model,
        **making.options(),
        **job.options(),
    )
    if json:
        emit({**made.report, "this_run": made.spent})
    else:
        _tell(made.report, made.spent, output)


def _prices(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--price {text!r}: write two numbers, e.g. 0.15,0.6") from error
    if not (0 <= first < float("inf") and 0 <= second < float("inf")):
        raise InputError(f"--price {text!r}: give numbers of 0 or more")
    return first, second


def _list(found: list[Any], *, json: bool) -> None:
    """Print each pipeline with what it reads and does."""
    if json:
        emit([one.model_dump(mode="json", include={"name", "summary", "input"}) for one in found])
        return
    width = max(len(one.name) for one in found)
    for one in found:
        reads = "" if one.input == "none" else f" (reads {one.input})"
        print(f"{one.name:{width}}  {one.summary}{reads}")


def _tell(report: dict[str, Any], spent: dict[str, Any], output: str) -> None:
    """Print the report in a few lines."""
    print(f"{report['written']:,} records from {report['items']:,} items, in {output}")
    for step in report["steps"]:
        aside = sum(one["count"] for one in step["set_aside"].values())
        if aside:
            print(f"  {step['step']}: {aside:,} set aside")
            for reason, found in step["set_aside"].items():
                print(f"    {reason}: {found['count']:,}")
    cost = f", cost {spent['cost']:.4f}" if "cost" in spent else ""
    print(
        f"asked {spent['requests']:,} times, {spent['cached']:,} answers from the cache; "
        f"{spent['prompt_tokens']:,} tokens read, {spent['new_tokens']:,} written{cost}"
    )
    if report["unreadable"]:
        print(f"records that cannot be read: {report['unreadable']:,}", file=sys.stderr)
