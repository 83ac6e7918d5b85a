"""Encodes a file of any size into a file of vectors, and goes on where it was killed.

The input is read in blocks of records. A finished block is kept in a folder beside the output
(`OUT.part`, see `_job.py`); a later run with the same input, model and options skips it. At the end
the blocks are put together and the output appears under its name at once, whole. Blocks are cut by
the input alone, so a resumed job gives the very bytes of one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from embedlm.backbone.memory import give_back
from embedlm.bulk.blocks import Worker
from embedlm.bulk.identity import identity
from embedlm.bulk.workers import Crew, Task, work
from embedlm.bulk.writers import OUTPUT_COLUMNS, WRITERS, Finished, lines
from embedlm.data.source import SUFFIXES, Fields, Record, Source
from embedlm.errors import InputError, JobError, RecordError, closest, require
from embedlm.jobs.job import Block, Job, disk_errors, write_whole
from embedlm.jobs.json_files import read_json

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.encode.compiling import Mode

__all__ = ["Encoded", "encode_file", "encode_folder", "read_texts"]

BLOCK = 1024
"""Records a block: little is lost by a kill, and packs are still full."""
BLOCK_OF_TOKENS = 128
"""The same where every token has a vector."""
BYTES_PER_TOKEN = 4
"""Of a file, about."""
SMALL = 1 << 14
"""Bytes of a file below which weights are not packed."""
_ANEW = "To begin anew use --restart (restart=True), or choose another output"


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a finished job did."""

    output: str
    rows: int
    """Texts encoded."""
    rejected: int
    """Records set aside."""
    dim: int | None
    """Width of the dense vectors, in elements of the output."""
    blocks: int
    resumed: int
    """Blocks that an earlier run had finished."""


def encode_file(
    model: Embedder,
    source: str | Path,
    target: str | Path,
    *,
    input_format: str | None = None,
    text_field: str = "text",
    id_field: str = "id",
    keep: Sequence[str] = (),
    rejects: str | Path | None = None,
    calibration: str | Path | None = None,
    restart: bool = False,
    compile: bool | None = None,
    block: int | None = None,
    show_progress: bool | None = None,
    crew: Crew | None = None,
    note: Path | None = None,
    **options: Any,
) -> Encoded:
    """Encode the records of a file (or "-", standard input) into a file of vectors.

    Args:
        model: encodes.
        source: .txt (a text a line), .jsonl, .csv, .tsv or .parquet, or "-".
        target: .npy, .npz, .jsonl or .parquet; what these hold is told in `_writers.py`.
        input_format: says what `source` is where its name does not.
        text_field: field or column that holds the text.
        id_field: field or column that holds the id; without one the line number is the id.
        keep: further fields to copy into .jsonl or .parquet.
        rejects: where bad records are set aside, as JSON lines; None: the first one is an error.
        calibration: texts from which int8 and uint8 take their ranges; None: the first block.
        restart: throw away what an earlier run has finished.
        compile: compile the model first, or not; None: where the file is long enough to pay.
        block: records a block.
        show_progress: None shows a bar on a terminal.
        crew: other processes that encode (see `crew_of`); None: this one alone.
        note: file that tells a finished job from others, which is then not done again.
        **options: as for `Embedder.encode`: role, instruction, demonstrations, heads, dim,
            precision, normalize, batch_tokens, max_length, adapter.

    Raises:
        InputError: an input, output or option that cannot be used.
        RecordError: a bad record, with file and line.
        JobError: the job cannot be started, continued or finished; finished blocks are kept.
    """
    reader = Source(source, Fields(text_field, id_field, tuple(keep)), input_format)
    sample = None if calibration is None else Source(calibration, Fields(text_field))
    worker = Worker(model, options, set_aside=rejects is not None)
    out = Path(target)
    _check_output(out, reader, worker)
    if rejects is not None:
        _check_place(Path(rejects), reader, "rejects file")
    size = _block_size(block, worker)
    manifest = {
        "version": 1,
        "input": reader.fingerprint(),
        "calibration": None if sample is None else sample.fingerprint(),
        "options": {**options, "block": size, "compile": compile, "rejects": rejects is not None},
        **identity(model, with_head="indices" in worker.empty),
    }
    manifest = json.loads(json.dumps(manifest, default=str))
    if note is not None and note.is_file() and out.exists() and not restart:
        before = read_json(note)
        if before.get("manifest") == manifest:
            kept = Encoded(**before["report"])
            return replace(kept, resumed=kept.blocks)
    with Job.open(out, manifest, restart=restart) as job, ExitStack() as stack:
        worker.kernels = _kernels(job, compile, model, reader)
        stack.enter_context(model.executor.fixed(worker.kernels))
        report = job.finished()
        if report is None or not out.exists():
            if worker.needs_ranges:
                _take_ranges(worker, job, sample, size)
            with _bar(reader, show_progress) as moved:
                count = _run(worker, job, reader, size, moved, crew)
            report = _put_together(
                Finished(job, count, worker.empty, worker.vocabulary), out, rejects
            )
        job.finish(report)
    if note is not None:
        text = json.dumps({"manifest": manifest, "report": report}) + "\n"
        note.write_text(text, encoding="utf-8")
    return replace(Encoded(**report), resumed=job.kept)


def encode_folder(
    model: Embedder, source: str | Path, target: str | Path, **options: Any
) -> list[Encoded]:
    """Encode each file of a folder into a .parquet of its name in another folder.

    A file that is finished is not done again unless it, the model or an option has changed; one
    that was begun goes on where it was.

    Args:
        model: encodes.
        source: folder of .txt, .jsonl, .csv, .tsv or .parquet files; others in it are left alone.
        target: folder of the outputs, made if it is not there.
        **options: as for `encode_file`, but rejects.

    Raises:
        InputError: no file to encode, or two of one name.
    """
    files = sorted(path for path in Path(source).iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{str(source)!r} holds no {', '.join(SUFFIXES)} file")
    if options.get("rejects") is not None:
        raise InputError("a folder has no one rejects file; encode its files one by one")
    names = [path.stem for path in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two files of {str(source)!r} are called {twice!r}; rename one")
    out = Path(target)
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for path in files:
        place, note = out / f"{path.stem}.parquet", out / f".{path.stem}.json"
        found.append(encode_file(model, path, place, note=note, **options))
    return found


def _check_output(out: Path, reader: Source, worker: Worker) -> None:
    """Refuse an output that cannot be written or cannot hold what is asked."""
    kind, keep = out.suffix.lower(), reader.fields.keep
    if kind not in WRITERS:
        raise InputError(
            f"the output {str(out)!r} must end in one of {', '.join(WRITERS)}."
            + closest(kind, list(WRITERS))
        )
    _check_place(out, reader, "output")
    arrays = set(worker.empty) - {"columns", "rejects"}
    if kind == ".npy" and arrays != {"dense"}:
        raise InputError(
            "a .npy file holds dense vectors alone; write sparse and multi-vector heads to .npz, "
            ".jsonl or .parquet, or ask for the dense head only"
        )
    if keep and kind in (".npy", ".npz"):
        raise InputError(f"a {kind} file cannot keep fields; write .jsonl or .parquet")
    taken = [name for name in keep if name in OUTPUT_COLUMNS]
    if taken:
        raise InputError(f"the field {taken[0]!r} cannot be kept: an output column has that name")
    if kind == ".parquet":
        require("pyarrow.parquet", "parquet")


def _block_size(given: int | None, worker: Worker) -> int:
    if given is None:
        return BLOCK_OF_TOKENS if "tokens" in worker.empty else BLOCK
    if given < 1:
        raise InputError(f"block is {given}; give a number of records above 0")
    return given


def _check_place(path: Path, reader: Source, what: str) -> None:
    if path.is_dir():
        raise InputError(f"the {what} {str(path)!r} is a folder; give a file name")
    if not path.parent.is_dir():
        raise InputError(f"the {what}'s folder {str(path.parent)!r} does not exist; make it first")
    if path.exists() and not reader.stdin and path.samefile(reader.path):
        raise InputError(f"the {what} is the input itself; give another name")


def read_texts(path: str | Path, text_field: str = "text") -> list[str]:
    """Return the texts of a file; a bad record is an error."""
    source = Source(path, Fields(text_field))
    return [_good(record, source.name) for record in source]


def _good(record: Record, name: str) -> str:
    if record.error is not None:
        raise RecordError(f"{name}:{record.place}: {record.error}. Mend the record")
    return record.text


def _blocks(source: Source, size: int) -> Iterator[list[Record]]:
    records = iter(source)
    while chunk := list(islice(records, size)):
        yield chunk


def _digest(records: Sequence[Record]) -> npt.NDArray[np.uint8]:
    seen = hashlib.sha256()
    for r in records:
        seen.update(json.dumps([r.place, r.text, r.columns, r.error]).encode("utf-8"))
    return np.frombuffer(seen.digest(), dtype=np.uint8)


def _run(worker: Worker, job: Job, source: Source, size: int, moved: Any, crew: Crew | None) -> int:
    """Encode every block that is not yet there; return how many there are."""
    count = 0

    def missing() -> Iterator[Task]:
        nonlocal count
        for index, records in enumerate(_blocks(source, size)):
            count = index + 1
            digest = _digest(records)
            if not _is_there(job, index, records, digest, worker, source):
                yield Task(index, records, digest, source.name, worker.ranges, worker.kernels)
            moved()

    for index, block in _encoded(worker, missing(), crew):
        if worker.ranges is not None and job.ranges() is None:
            job.fix_ranges(worker.ranges)
        job.save(index, block)
        give_back()
    if job.count() > count:
        raise JobError(f"{source.name} is shorter than when the job was begun. {_ANEW}")
    return count


def _encoded(
    worker: Worker, tasks: Iterator[Task], crew: Crew | None
) -> Iterator[tuple[int, Block]]:
    """Yield each task's index and block; the crew has to wait for the ranges of int8 and uint8."""
    while crew is None or (worker.needs_ranges and worker.ranges is None):
        task = next(tasks, None)
        if task is None:
            return
        yield task.index, task.done_by(worker)
    yield from work(crew, tasks)


def _is_there(
    job: Job,
    index: int,
    records: Sequence[Record],
    digest: npt.NDArray[np.uint8],
    worker: Worker,
    source: Source,
) -> bool:
    """Tell whether an earlier run has finished a block.

    Raises:
        JobError: it has, of other records.
    """
    block = job.load(index)
    if block is None:
        return False
    if not np.array_equal(block["digest"], digest):
        raise JobError(
            f"{source.name} has changed since the job was begun: the records at "
            f"{records[0].place} to {records[-1].place} are other ones. {_ANEW}"
        )
    if worker.needs_ranges and worker.ranges is None and len(block["columns"]):
        raise JobError(f"{job.part} has lost its ranges.npy. {_ANEW}")
    return True


def _kernels(job: Job, compile: bool | None, model: Embedder, source: Source) -> Mode:
    """Choose the kernels of all blocks: as wanted, or by the input's size."""
    kept = job.kernels()
    if kept is not None:
        return cast("Mode", kept)
    size = source.path.stat().st_size if source.regular else None
    mode: Mode = "on" if compile else "off"
    if not compile and size is not None and size < SMALL:
        mode = "plain"
    elif compile is None and size is not None:
        tokens = size // BYTES_PER_TOKEN * len(model.renderer.templates(None))
        mode = "on" if model.executor.repays_compiling(tokens) else "off"
    job.fix_kernels(mode)
    return mode


def _take_ranges(worker: Worker, job: Job, sample: Source | None, size: int) -> None:
    """Take the ranges of int8 and uint8 from an earlier run, or from the calibration texts."""
    worker.ranges = job.ranges()
    if worker.ranges is not None or sample is None:
        return
    for records in _blocks(sample, size):
        worker.find_ranges([_good(record, sample.name) for record in records])
    if worker.ranges is None:
        raise InputError(f"the calibration file {sample.name} holds no texts")
    job.fix_ranges(worker.ranges)


@contextmanager
def _bar(source: Source, show: bool | None) -> Iterator[Any]:
    """Yield a function that brings the bar to the source's position."""
    from tqdm import tqdm

    disable = None if show is None else not show
    with tqdm(
        total=source.total, unit=source.unit, unit_scale=True, desc="encode", disable=disable
    ) as bar:
        yield lambda: bar.update(source.position - bar.n)


def _put_together(done: Finished, out: Path, rejects: str | Path | None) -> dict[str, Any]:
    """Write the output and the rejects file; return the report."""
    bad = sum(len(lines(array)) for array in done.arrays("rejects"))
    rows = sum(len(lines(array)) for array in done.arrays("columns"))
    with disk_errors(done.job.part):
        if rejects is not None:
            write_whole(
                Path(rejects),
                lambda handle: handle.writelines(a.tobytes() for a in done.arrays("rejects")),
            )
        write_whole(out, lambda handle: WRITERS[out.suffix.lower()](handle, done))
    dim = done.empty["dense"].shape[1] if "dense" in done.empty else None
    return asdict(Encoded(str(out), rows, bad, dim, done.count, 0))
