"""Options that the commands over training records share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import flag, path, whole

__all__ = ["AS_RECORDS", "Instruction", "RecordJobOptions", "RecordsPath"]

RecordsPath = Annotated[
    str,
    path(
        "Records with a query and positives: .jsonl, .csv, .tsv or .parquet, in the layout of "
        "sentence-transformers, FlagEmbedding, Tevatron or ours; - reads standard input.",
        "RECORDS",
        None,
        allow_leading_hyphen=True,
    ),
]
Instruction = Annotated[
    str | None,
    Parameter(metavar="TEXT", help="The queries' instruction; without it the model's own."),
]


@Parameter(name="*", group="Job")
@dataclass(frozen=True)
class RecordJobOptions:
    """How records are written, and how the job runs."""

    form: Annotated[
        str,
        Parameter(
            metavar="FORM",
            help="Form of the output: records, sentence-transformers, flagembedding, tevatron or "
            "e5.",
        ),
    ] = "records"
    rejects: Annotated[
        str | None,
        path("Set aside in this file what cannot be read; without it that stops the job."),
    ] = None
    block: Annotated[
        int | None,
        whole(
            "Records that are worked on together, of which a kill loses one block; without it as "
            "many as suit the work, 16 to 2048."
        ),
    ] = None
    restart: Annotated[bool, flag("Discard what an earlier run has finished.")] = False

    def options(self) -> dict[str, Any]:
        """Return the options of `embedlm.mine` and `mining.score`."""
        return asdict(self)


AS_RECORDS = RecordJobOptions()
