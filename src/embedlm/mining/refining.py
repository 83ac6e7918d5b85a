"""Refines the negatives that records already have: false ones are left out or become positives.

The filters are those of mining that compare scores (`mining.filters`), and the judges are those of
mining (`mining.relabel`): RLHN (Thakur et al., arXiv 2505.16967) is such a pass over data sets that
others have mined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from embedlm.data import Document, TrainingRecord
from embedlm.errors import InputError
from embedlm.mining.corpus import Rows
from embedlm.mining.filters import KEPT, reasons
from embedlm.mining.negatives import NegativeMiner, Open
from embedlm.mining.negatives_job import Files, Running, miners_of, reranker_of, run_job
from embedlm.mining.outputs import Mined
from embedlm.mining.rankings import Block
from embedlm.mining.record_job import Summary
from embedlm.mining.relabel import MOST
from embedlm.mining.selection import Choice, Request
from embedlm.mining.settings import Judging, Settings

if TYPE_CHECKING:
    from embedlm.rerank import Reranker

__all__ = ["refine"]

_OF_SEARCH = ("shift", "consistency")
"""Filters by the rank that a search gives."""


def refine(
    records: Rows,
    *,
    model: Any = None,
    output: str | Path | None = None,
    filters: Any = None,
    seed: int = 0,
    reranker: Reranker | str | Path | None = None,
    llm: Any = None,
    judge: str = "rlhn",
    mode: str = "relabel",
    most: int = MOST,
    instruction: str | None = None,
    form: str = "records",
    rejects: str | Path | None = None,
    restart: bool = False,
    block: int | None = None,
    show_progress: bool | None = None,
) -> Mined:
    """Leave out false negatives among those that records already have; nothing is searched.

    A negative that is the query, or a positive of any record with that query, is always left out.
    Every document is scored by the model, and the scores are written.

    Args:
        records: a file, or objects with a query, positives and negatives, in any of the layouts of
            `data.records`.
        model: an `Embedder`, a folder or hub id, or "bm25", whose scores the filters compare; None:
            the built-in model.
        output: a .jsonl file; None returns the rows.
        filters: {"perc_pos": 0.95} or ["perc_pos=0.95"]: abs, margin_pos, perc_pos and veto.
        seed: of the language models.
        reranker: a `Reranker`, a folder or a hub id; its logits are compared by the filter veto.
        llm: a generator (see `generation.resolve_generator`), or two, that judge the negatives.
        judge: rlhn or arhn; see `mining.relabel`.
        mode: what becomes of false negatives: relabel (as positives), remove, or drop the record.
        most: a record with more false negatives is left out.
        instruction: of the queries that have none; None takes the recipe's.
        form: records, sentence-transformers, flagembedding, tevatron or e5.
        rejects: file for records that cannot be read; None: the first one is an error.
        restart: discard what an earlier run has finished.
        block: records that are worked on together; a kill loses one block.
        show_progress: None shows a bar for long jobs on a terminal.

    Raises:
        InputError: an input or an option that cannot be used, or neither filters nor a judge.
        RecordError: a bad record, with file and line.
        JobError: the job cannot be started, continued or finished; finished blocks are kept.
        GenerationError: a language model cannot be asked; its answers until then are kept.
    """
    settings = Settings.of_refining(
        Judging.of(llm, judge, mode, most),
        reranker is not None,
        filters=filters,
        seed=seed,
        form=form,
    )
    given = settings.rules.filters.given()
    searched = next((name for name in _OF_SEARCH if name in given), None)
    if searched is not None:
        raise InputError(
            f"the filter {searched} is of the ranks of a search, and refining searches nothing; "
            "give abs, margin_pos, perc_pos or veto, or mine with it"
        )
    if not given and not settings.judging.llms:
        raise InputError(
            "neither a filter nor a language model was given, so that nothing but copies of "
            "positives would be left out; give filters (perc_pos=0.95) or llm"
        )
    if isinstance(model, list | tuple):
        raise InputError("model is a list, and one model gives the scores; give one")
    files = Files(records, None, output, rejects, None, None)
    running = Running(block, restart, show_progress)
    return run_job(
        files,
        settings,
        lambda: (miners_of(model, instruction), reranker_of(reranker)),
        running,
        NegativeRefiner,
    )


class NegativeRefiner(NegativeMiner):
    """Turns the records of a block into findings, with no other negatives than their own."""

    verb: ClassVar[str] = "refine"
    numbers_documents: ClassVar[bool] = False

    @staticmethod
    def ranks_of(facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return nothing: no search ranks the negatives."""
        return {}

    def origin(self, one: Open) -> dict[str, Any]:
        """Return where the negatives come from, with what the record said of that."""
        before = one.record.provenance.get("negatives")
        return super().origin(one) | ({} if before is None else {"before": before})

    @staticmethod
    def reported(report: dict[str, Any]) -> dict[str, Any]:
        """Return what a report tells of such a job: nothing of a search."""
        of_search = {"passages", "duplicates", "k", "short", "window"}
        return {name: value for name, value in report.items() if name not in of_search}

    @staticmethod
    def spared(record: TrainingRecord) -> Sequence[Document]:
        """Return no negatives: each of them must stand the test."""
        return ()

    @staticmethod
    def kept(one: Open) -> int:
        """Return 0: all negatives are counted."""
        return 0

    def opened(
        self,
        block: Block,
        records: Sequence[TrainingRecord],
        requests: Sequence[Request],
        summary: Summary,
    ) -> list[Open]:
        """Return the records with the negatives that the filters leave them."""
        found = []
        for record, request in zip(records, requests, strict=True):
            one = Open(record, Choice(), len(record.negatives), request.positive)
            summary.counts["given"] += one.given
            why = self._why(record, request)
            for document, rule in zip(record.negatives, why, strict=True):
                if rule != KEPT:
                    summary.counts[f"dropped:{rule}"] += 1
                    example = self.example(one, document, document.score or 0.0)
                    summary.example(f"dropped:{rule}", example)
            record.negatives = [
                d for d, rule in zip(record.negatives, why, strict=True) if not rule
            ]
            one.unjudged = list(record.negatives) if self.settings.judging.llms else []
            found.append(one)
        return found

    def _why(self, record: TrainingRecord, request: Request) -> list[str]:
        """Return the rule that leaves out each negative of a record; else KEPT."""
        scores_K = np.array([one.score for one in record.negatives], np.float32)
        why = reasons(self.settings.rules.filters, scores_K, request.positive).tolist()
        for at, document in enumerate(record.negatives):
            places = self.rankings.corpus.places_of(document)
            why[at] = next((request.known[p] for p in places if p in request.known), why[at])
        left = [at for at, rule in enumerate(why) if rule == KEPT]
        if request.veto is not None and left:
            texts = [record.negatives[at].text for at in left]
            logits = self.rankings.reranker.score(record.query, texts, probability=False)
            for at, logit in zip(left, logits, strict=True):
                why[at] = "veto" if float(logit) > request.veto else KEPT
        return [str(rule) for rule in why]
