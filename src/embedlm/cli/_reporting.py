"""Options of the commands that write results and reports of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from embedlm.cli._options import repeated
from embedlm.cli._values import emit

__all__ = ["AS_TOLD", "Reporting"]


@Parameter(name="*", group="Output")
@dataclass(frozen=True)
class Reporting:
    """Where results and reports are written."""

    output: Annotated[
        tuple[str, ...],
        repeated("Write the results (.json) or a report (.html, .md)", ["--output", "-o"], "FILE"),
    ] = ()

    def check(self, *inputs: str | None) -> None:
        """Refuse, before anything is computed, outputs that cannot be written.

        Args:
            inputs: files and folders that are read.
        """
        from embedlm.studies.report import check_outputs

        check_outputs(self.output, inputs=inputs)

    def write(self, name: str, found: Mapping[str, Any], *, json: bool) -> None:
        """Write results to every output, and print them where JSON was asked for.

        Args:
            name: what the results are called.
            found: the results.
            json: print them.
        """
        from embedlm.studies.report import write_report

        for file in self.output:
            write_report(Path(file), [(name, found)])
        if json:
            emit(found)


AS_TOLD = Reporting()
