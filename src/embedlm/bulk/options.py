"""The options of a job over a file, and the refusal of those that it could not use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from embedlm.bulk.blocks import WITH_RANGES
from embedlm.data import Fields, Source, text_source
from embedlm.errors import InputError

__all__ = ["JobOptions"]

_DEFAULT = Fields()
MOST = (1 << 31) - 1
"""Records of the largest block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a file is read and its vectors are made, besides the options of `Embedder.encode`."""

    input_format: str | None = None
    """Form of the input, where its name does not tell it."""
    text_field: str = _DEFAULT.text
    """Field or column that holds the text."""
    image_field: str | None = None
    """Field or column that holds the path of an image, inside the folder of the file."""
    id_field: str = _DEFAULT.id
    """Field or column that holds the id; without the default field the id is the line number."""
    keep: Sequence[str] = ()
    """Further fields to copy into .jsonl or .parquet."""
    quoting: bool | None = None
    """Whether cells of a .csv or .tsv may stand in quotes; None: those of .csv."""
    rejects: str | Path | None = None
    """File for bad records, as JSON lines; None: the first one is an error."""
    calibration: str | Path | None = None
    """Texts from which int8 and uint8 take their ranges; None: the model's fitted ones."""
    restart: bool = False
    """Discard what an earlier run has finished."""
    compile: bool | None = None
    """Whether to compile the model first; None: if the file is long enough."""
    block: int | None = None
    """Records of a block."""

    def __post_init__(self) -> None:
        size = self.block
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise InputError(f"block is {size!r}; give a whole number of records")
        if size is not None and not 1 <= size <= MOST:
            raise InputError(f"block is {size}; give a number of records above 0, at most {MOST:,}")

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple[JobOptions, dict[str, Any]]:
        """Return a job's options, and apart from them those that are left."""
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in options.items() if name in names}
        return cls(**own), {name: options[name] for name in options if name not in names}

    def sources(self, source: str | Path) -> tuple[Source, Source | None]:
        """Return the input, and the calibration texts if there are any.

        Raises:
            InputError: one of them cannot be read, or cannot have these fields.
        """
        sample = None
        if self.calibration is not None:
            sample = text_source(self.calibration, self.text_field)
        named = Fields(self.text_field, self.id_field, tuple(self.keep), self.image_field)
        records = Source(source, named, self.input_format, quoting=self.quoting)
        if records.bare and sample is not None and not sample.bare:
            records.fields = replace(named, text=_DEFAULT.text)  # the field is that of the sample
        return records, sample

    def check(self, precision: str, suffix: str) -> None:
        """Refuse an option that would change nothing.

        Args:
            precision: of the vectors.
            suffix: of the output's name.

        Raises:
            InputError: with the option, and what it is for.
        """
        if self.calibration is not None and precision not in WITH_RANGES:
            raise InputError(
                f"calibration sets the ranges of {' and '.join(WITH_RANGES)}, and the precision is "
                f"{precision}, which has none; leave --calibration (calibration=) out, or choose "
                f"--precision {WITH_RANGES[0]}"
            )
        if self.id_field != _DEFAULT.id and suffix in (".npy", ".npz"):
            raise InputError(
                f"a {suffix} file holds no ids, so the id field {self.id_field!r} would not be "
                "used; write .jsonl or .parquet, or leave --id-field (id_field=) out"
            )
