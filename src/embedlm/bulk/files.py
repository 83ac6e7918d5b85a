"""Encodes a file of any size into a file of vectors, and resumes a job that was killed.

The input is read in blocks of records. A finished block is kept in a folder beside the output
(`OUT.part`, see `jobs/folder.py`); a later run with the same input, model and options skips it. At
the end the blocks are put together and the output appears under its name at once, whole. Blocks are
cut by the input alone, so a resumed job gives the very bytes of one that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import numpy.typing as npt

from embedlm.backbone.memory import give_back
from embedlm.bulk.blocks import Block, BlockEncoder, load_block, save_block
from embedlm.bulk.options import JobOptions
from embedlm.bulk.outputs import check_output, check_paths
from embedlm.bulk.requests import BlockRequest
from embedlm.bulk.workers import Pool, run_requests
from embedlm.bulk.writers import WRITERS, Finished
from embedlm.data import Record, Source, read_texts
from embedlm.encode.compiling import Mode
from embedlm.encode.identity import identity, ranges_digest
from embedlm.errors import InputError, JobError
from embedlm.jobs import Job, progress, write_file
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.manifest import json_values
from embedlm.jobs.names import check_name
from embedlm.jobs.progress import Progress
from embedlm.jobs.rejects import check_counts, check_rejects, write_rejects

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["Encoded", "encode_file"]

BLOCK = 1024
"""Records of a block: a kill loses little work, and packs are still full."""
BLOCK_OF_TOKENS = 128
"""Records of a block where every token has a vector, which takes more memory."""
BYTES_PER_TOKEN = 4
"""Bytes of a text file that make a token, roughly."""
SMALL = 1 << 14
"""Size in bytes of a file for which packing the weights does not pay."""
_RANGES, _KERNELS = "ranges", "kernels"
"""Names of the values that a job fixes once: ranges of int8 and uint8, and the kernels."""
_ANEW = "To start over use --restart (restart=True), or choose another output"


@dataclass(frozen=True, slots=True)
class Encoded:
    """The report of a finished job."""

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
    show_progress: bool | None = None,
    pool: Pool | None = None,
    note: Path | None = None,
    **options: Any,
) -> Encoded:
    """Encode the records of a file (or "-", standard input) into a file of vectors.

    Args:
        model: encodes.
        source: .txt (a text a line), .md (a text a paragraph), .jsonl, .csv, .tsv or .parquet, each
            also with .gz, .xz or .zst; or "-".
        target: .npy, .npz, .jsonl or .parquet; `bulk/writers.py` says what these hold.
        show_progress: None shows a bar on a terminal.
        pool: other processes that encode (see `open_pool`); None: this one alone.
        note: file in which a finished job is noted, so that it is not done again.
        **options: those of `JobOptions` (input_format, text_field, image_field, id_field, keep,
            quoting, rejects, calibration, restart, compile, block), and of `Embedder.encode` role,
            instruction, demonstrations, heads, dim, precision, normalize, batch_tokens,
            max_length and adapter.

    Raises:
        InputError: an input, output or option that cannot be used.
        RecordError: a bad record, with file and line.
        JobError: the job cannot be started, continued or finished; finished blocks are kept.
    """
    task = _prepare(model, source, target, options)
    restart = task.chosen.restart
    if not restart and (noted := _noted(note, task.manifest, task.out)) is not None:
        return replace(noted, resumed=noted.blocks)
    with Job.open(task.out, task.manifest, restart=restart) as job, ExitStack() as stack:
        task.encoder.kernels = _kernels(job, task.chosen.compile, model, task.records)
        stack.enter_context(model.executor.fixed(task.encoder.kernels))
        report = job.report()
        if report is None or not task.out.exists():
            report = task.run(job, pool, show_progress)
        job.finish(report)
    if note is not None:
        write_json(note, {"manifest": task.manifest, "report": report})
    return replace(Encoded(**report), resumed=job.resumed)


@dataclass(frozen=True, slots=True)
class _Task:
    """A job whose options have been checked, before its folder is opened."""

    encoder: BlockEncoder
    records: Source
    sample: Source | None
    """The calibration texts."""
    out: Path
    rejects: Path | None
    size: int
    """Records of a block."""
    chosen: JobOptions
    manifest: dict[str, Any]

    def run(self, job: Job, pool: Pool | None, show_progress: bool | None) -> dict[str, Any]:
        """Encode what no earlier run has finished, and write the output; return the report."""
        if self.encoder.needs_ranges:
            _take_ranges(self.encoder, job, self.sample, self.size)
        run = _Run(self.encoder, job, self.records, self.size)
        count = run.encode(pool, show_progress)
        done = Finished(job, count, self.encoder.empty, self.encoder.vocabulary)
        return _put_together(done, run.read, self.out, self.rejects)


def _prepare(
    model: Embedder, source: str | Path, target: str | Path, options: dict[str, Any]
) -> _Task:
    """Check everything about a job that can be checked before it begins."""
    chosen, of_encode = JobOptions.split(options)
    check_name(target, "output")
    out = Path(target)
    records, sample = chosen.sources(source)
    aside = None if chosen.rejects is None else Path(chosen.rejects)
    check_paths(
        {"output": out, "rejects file": aside}, {"input": records, "calibration file": sample}
    )
    if aside is not None:
        check_rejects(aside)
    encoder = BlockEncoder(model, of_encode, keep_rejects=aside is not None)
    check_output(out, records.fields.keep, set(encoder.empty))
    records.check_fields()
    chosen.check(encoder.precision, out.suffix.lower())
    size = chosen.block or (BLOCK_OF_TOKENS if "tokens" in encoder.empty else BLOCK)
    jobs_own = {"block": size, "compile": chosen.compile, "rejects": aside is not None}
    fitted = encoder.needs_ranges and sample is None
    manifest = json_values(
        {
            "version": 2,
            "input": records.fingerprint(),
            "calibration": None if sample is None else sample.fingerprint(),
            "options": {**of_encode, **jobs_own},
            **identity(model, with_head="indices" in encoder.empty),
            **({"ranges": ranges_digest(model)} if fitted else {}),
        }
    )
    return _Task(encoder, records, sample, out, aside, size, chosen, manifest)


def _noted(note: Path | None, manifest: dict[str, Any], out: Path) -> Encoded | None:
    """Return the report of this job if an earlier run has noted it and its output is there."""
    if note is None or not note.is_file() or not out.exists():
        return None
    try:
        noted = read_json(note, JobError)
        same = noted["manifest"] == manifest
        return Encoded(**noted["report"]) if same else None
    except (JobError, KeyError, TypeError):  # damaged: the job is done again
        return None


def _kernels(job: Job, compile: bool | None, model: Embedder, source: Source) -> Mode:
    """Choose the kernels of all blocks: by `compile`, or by the input's size."""
    kept = job.fixed_text(_KERNELS)
    if kept is not None:
        if kept not in get_args(Mode):
            raise JobError(f"{job.folder} names unknown kernels ({kept[:20]!r}). {_ANEW}")
        return cast("Mode", kept)
    if compile and model.executor.compiling is None:
        raise InputError(
            f"--compile (compile=True): the layers of {model.name!r} cannot be compiled as they "
            "are loaded here; leave it out"
        )
    size = source.path.stat().st_size if source.regular else None
    mode: Mode = "on" if compile else "off"
    if not compile and size is not None and size < SMALL:
        mode = "plain"
    elif compile is None and size is not None and model.executor.compiling is not None:
        tokens = size // BYTES_PER_TOKEN * len(model.renderer.templates(None))
        mode = "on" if model.executor.repays_compiling(tokens) else "off"
    job.fix(_KERNELS, mode)
    return mode


def _take_ranges(encoder: BlockEncoder, job: Job, sample: Source | None, size: int) -> None:
    """Take the ranges of int8 and uint8 from an earlier run, or from the calibration texts."""
    encoder.ranges = job.fixed_array(_RANGES)
    if encoder.ranges is not None or sample is None:
        return
    texts = read_texts(sample)
    while chunk := list(islice(texts, size)):
        encoder.widen_ranges(chunk)
    if encoder.ranges is None:
        raise InputError(f"the calibration file {sample.name} holds no texts")
    if (encoder.ranges[0] == encoder.ranges[1]).all():
        raise InputError(
            f"the texts of the calibration file {sample.name} tell no ranges, as their vectors are "
            "all the same; give a few hundred different ones"
        )
    job.fix(_RANGES, encoder.ranges)


@dataclass(slots=True)
class _Run:
    """One run over all blocks of a job."""

    encoder: BlockEncoder
    job: Job
    source: Source
    size: int
    """Records of a block."""
    read: int = 0
    """Records read so far."""
    count: int = 0
    """Blocks cut so far."""

    def encode(self, pool: Pool | None, show_progress: bool | None) -> int:
        """Encode every block that is not yet there; return how many there are."""
        source, job = self.source, self.job
        shown = sys.stderr.isatty() if show_progress is None else show_progress
        total = source.count() if shown else None
        with progress(show_progress, total, scale=True, least=0) as advance:
            for index, block in self._encoded(
                self._missing(advance, estimated=shown and total is None), pool
            ):
                save_block(job, index, block)
                give_back()
        if job.count() > self.count:
            raise JobError(f"{source.name} is shorter than when the job was begun. {_ANEW}")
        return self.count

    def _missing(self, advance: Progress, *, estimated: bool) -> Iterator[BlockRequest]:
        """Yield the blocks that no earlier run has finished.

        Args:
            advance: gets the number of records of each block.
            estimated: tell `advance` how many records the file has, by the share that is read.
        """
        encoder = self.encoder
        size = self.source.total if estimated else None
        records = iter(self.source)
        while chunk := list(islice(records, self.size)):
            index, self.count = self.count, self.count + 1
            self.read += len(chunk)
            digest = _digest(chunk)
            if not self._is_there(index, chunk, digest):
                if encoder.needs_ranges and encoder.ranges is None:
                    encoder.take_fitted_ranges()
                yield BlockRequest(
                    index, chunk, digest, self.source.name, encoder.ranges, encoder.kernels
                )
            advance(len(chunk))
            if size and self.source.position:
                advance.expect(round(self.read * size / self.source.position))

    def _encoded(
        self, requests: Iterator[BlockRequest], pool: Pool | None
    ) -> Iterator[tuple[int, Block]]:
        """Yield each block with its index."""
        if pool is not None:
            yield from run_requests(pool, requests)
            return
        for request in requests:
            yield request.index, request.run(self.encoder)

    def _is_there(
        self, index: int, records: Sequence[Record], digest: npt.NDArray[np.uint8]
    ) -> bool:
        """Tell whether an earlier run has finished a block.

        Raises:
            JobError: an earlier run has finished it with other records.
        """
        block = load_block(self.job, index)
        if block is None:
            return False
        if not np.array_equal(block["digest"], digest):
            raise JobError(
                f"{self.source.name} has changed since the job was begun: the records at "
                f"{records[0].line} to {records[-1].line} are different. {_ANEW}"
            )
        return True


def _digest(records: Sequence[Record]) -> npt.NDArray[np.uint8]:
    seen = hashlib.sha256()
    for r in records:
        facts = [r.line, r.text, r.columns, r.error, *([r.image.digest] if r.image else [])]
        seen.update(json.dumps(facts).encode("utf-8"))
    return np.frombuffer(seen.digest(), dtype=np.uint8)


def _put_together(done: Finished, read: int, out: Path, rejects: Path | None) -> dict[str, Any]:
    """Write the output and the rejects file; return the report."""
    rows, rejected = done.count_lines("columns"), done.count_lines("rejects")
    check_counts(read, rows, rejected)
    with done.job.disk_errors():
        if rejects is not None:
            write_rejects(rejects, (array.tobytes() for array in done.arrays("rejects")))
        write_file(out, lambda handle: WRITERS[out.suffix.lower()](handle, done))
    dim = done.empty["dense"].shape[1] if "dense" in done.empty else None
    return asdict(Encoded(str(out), rows, rejected, dim, done.count, 0))
