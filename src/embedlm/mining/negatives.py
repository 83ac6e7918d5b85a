"""The negatives of a block of records: known documents, candidates, judges, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from embedlm.data import Document, TrainingRecord
from embedlm.generation import Cache
from embedlm.mining.corpus import RecordFile
from embedlm.mining.rankings import Block, DenseMiner, Rankings
from embedlm.mining.record_job import Finding, Summary, rounded
from embedlm.mining.relabel import Question, Verdict, judge
from embedlm.mining.selection import Candidate, Choice, Request, choose
from embedlm.mining.settings import Settings

__all__ = ["NegativeMiner", "Open"]

_ROUNDS = 3
"""Times that candidates in reserve take the place of those that a judge removed."""


@dataclass(slots=True)
class Open:
    """A record while it is worked on."""

    record: TrainingRecord
    choice: Choice
    given: int
    """Negatives that it had."""
    scorer_positive: float = 0.0
    reserve: list[Document] = field(default_factory=list)
    unjudged: list[Document] = field(default_factory=list)
    flagged: int = 0
    reason: str | None = None


class NegativeMiner:
    """Turns the records of a block into findings."""

    verb: ClassVar[str] = "mine"
    """The command, which provenance names."""
    numbers_documents: ClassVar[bool] = True
    """Whether a document without an id gets that of its passage."""

    def __init__(
        self, rankings: Rankings, settings: Settings, file: RecordFile, facts: Mapping[str, Any]
    ) -> None:
        self.rankings, self.settings, self.file = rankings, settings, file
        rules, rerank = settings.rules, facts["reranker"]
        self.provenance = {
            "by": f"embedlm {self.verb}",
            "miners": [
                {k: one[k] for k in ("name", "model") if k in one} for one in facts["miners"]
            ],
            "filters": facts["filters"],
            **self.ranks_of(facts),
            **({} if rules.sample is None else {"sample": rules.sample, "seed": rules.seed}),
            **({} if rerank is None else {"reranker": rerank}),
            **({} if facts["judge"] is None else {"judge": facts["judge"]}),
        }
        """Where mined negatives come from, as the records tell it."""

    def __call__(self, records: list[TrainingRecord], summary: Summary) -> list[Finding]:
        """Return the records with negatives, in their order."""
        block = Block([one.query for one in records], [one.instruction for one in records])
        self._note_instructions(block, summary)
        found = self.opened(block, records, self._requests(block, records), summary)
        if self.settings.judging.llms:
            self._judge([one for one in found if one.reason is None], summary)
        return [self._finding(one, summary) for one in found]

    @staticmethod
    def ranks_of(facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what provenance tells of the ranks that candidates may have."""
        return {"window": facts["window"]}

    @staticmethod
    def reported(report: dict[str, Any]) -> dict[str, Any]:
        """Return what a report tells of such a job."""
        return {name: value for name, value in report.items() if name != "given"}

    def opened(
        self,
        block: Block,
        records: Sequence[TrainingRecord],
        requests: Sequence[Request],
        summary: Summary,
    ) -> list[Open]:
        """Return the records with the negatives that the filters leave them."""
        choices = choose(self.rankings, block, requests, self.settings.rules)
        found = []
        for record, request, choice in zip(records, requests, choices, strict=True):
            one = Open(record, choice, len(record.negatives), request.positive)
            self._consistency(one)
            self._count(one, summary)
            self._take(one)
            found.append(one)
        return found

    def _note_instructions(self, block: Block, summary: Summary) -> None:
        """Count instructions of records that no model reads."""
        own = sum(one is not None for one in block.instructions)
        if own and not any(
            isinstance(miner, DenseMiner) and miner.takes_instructions
            for miner in self.rankings.miners
        ):
            summary.counts["instructions_unused"] += own

    # -- what is known ----------------------------------------------------------------------------

    def _requests(self, block: Block, records: Sequence[TrainingRecord]) -> list[Request]:
        """Score every known document, and note what is no candidate for which query."""
        corpus = self.rankings.corpus
        siblings = [self._siblings(record) for record in records]
        self._score(
            block,
            [[*record.documents, *more] for record, more in zip(records, siblings, strict=True)],
        )
        requests = []
        for row, (record, more) in enumerate(zip(records, siblings, strict=True)):
            known: dict[int, str] = {}
            itself = Document(record.query)
            for why, documents in (
                ("query", [itself]),
                ("given", self.spared(record)),
                ("positive", [*record.positives, *more]),
            ):
                known |= {place: why for one in documents for place in corpus.places_of(one)}
            scores = [float(one.score or 0.0) for one in record.positives]
            least = min([*scores, *(float(one.score or 0.0) for one in more)])
            places = [next(iter(corpus.places_of(one)), None) for one in record.positives]
            veto = self._veto(record, more)
            requests.append(Request(row, known, least, places, scores, veto))
        return requests

    @staticmethod
    def spared(record: TrainingRecord) -> Sequence[Document]:
        """Return the negatives of a record that stay what they are."""
        return record.negatives

    def _siblings(self, record: TrainingRecord) -> list[Document]:
        """Return the positives that other records have for a query."""
        own = {one.text for one in record.positives}
        found = [one for other in self.file.siblings(record.query) for one in other.positives]
        return [Document(one.text, one.id) for one in found if one.text not in own]

    def _score(self, block: Block, documents: Sequence[Sequence[Document]]) -> None:
        """Set the score of each document: its passage's, or that of its text."""
        inside: list[tuple[int, int, Document]] = []
        outside: list[tuple[int, Document]] = []
        for row, of_query in enumerate(documents):
            for document in of_query:
                place = next(iter(self.rankings.corpus.places_of(document)), None)
                if document.id is None and place is not None and self.numbers_documents:
                    document.id = self.rankings.corpus.document(place).id
                if place is None:
                    outside.append((row, document))
                else:
                    inside.append((row, place, document))
        scorer = self.rankings.scorer
        rows = np.array([row for row, _, _ in inside], dtype=np.int64)
        places = np.array([place for _, place, _ in inside], dtype=np.int64)
        scores = scorer.scores(block, rows, places).tolist()
        rows = np.array([row for row, _ in outside], dtype=np.int64)
        texts = [document.text for _, document in outside]
        scores += scorer.text_scores(block, rows, texts).tolist()
        scored = [document for _, _, document in inside] + [document for _, document in outside]
        for document, score in zip(scored, scores, strict=True):
            document.score = score

    def _veto(self, record: TrainingRecord, more: Sequence[Document]) -> float | None:
        """Return the largest logit that a negative may have."""
        margin = self.settings.rules.filters.veto
        if margin is None:
            return None
        texts = [one.text for one in (*record.positives, *more)]
        logits = self.rankings.reranker.score(record.query, texts, probability=False)
        return float(min(logits)) - margin

    # -- what was found ---------------------------------------------------------------------------

    def _consistency(self, one: Open) -> None:
        """Drop positives that the search does not find, and a record that then has none."""
        within = self.settings.rules.filters.consistency
        if within is None:
            return
        ranks = one.choice.positive_ranks
        kept = [
            positive
            for positive, rank in zip(one.record.positives, ranks, strict=True)
            if rank is not None and rank <= within
        ]
        one.choice.dropped["consistency"] += len(ranks) - len(kept)
        if kept:
            one.record.positives = kept
        else:
            one.reason = f"consistency: no positive is among the first {within}"

    def _count(self, one: Open, summary: Summary) -> None:
        for rule, count in one.choice.dropped.items():
            if count:
                summary.counts[f"dropped:{rule}"] += count
        for rule, candidates in one.choice.examples.items():
            for candidate in candidates[:1]:
                summary.example(f"dropped:{rule}", self._example(one, candidate))

    def _example(self, one: Open, candidate: Candidate) -> dict[str, Any]:
        document = self.rankings.corpus.document(candidate.place)
        return self.example(one, document, candidate.score, rank=candidate.rank)

    @staticmethod
    def example(one: Open, document: Document, score: float, **rank: int) -> dict[str, Any]:
        """Return what a report shows of a negative that a rule left out."""
        return {
            "query": one.record.query,
            "passage": document.text[:200],
            "id": document.id,
            **rank,
            "score": rounded(score),
            "positive_score": rounded(one.scorer_positive),
        }

    def _take(self, one: Open) -> None:
        taken = [self._document(candidate) for candidate in one.choice.taken]
        one.record.negatives += taken
        one.unjudged = taken
        if self.settings.judging.llms:
            one.reserve = [self._document(candidate) for candidate in one.choice.reserve]

    def _document(self, candidate: Candidate) -> Document:
        document = self.rankings.corpus.document(candidate.place)
        document.rank, document.score = candidate.rank, candidate.score
        return document

    # -- judges -----------------------------------------------------------------------------------

    def _judge(self, found: Sequence[Open], summary: Summary) -> None:
        cache = Cache()
        try:
            for _ in range(_ROUNDS):
                asked = [one for one in found if one.unjudged and one.reason is None]
                if not asked:
                    break
                self._round(asked, cache, summary)
        finally:
            cache.close()
        for one in found:  # a candidate that no judge has seen is no negative
            unseen = {id(document) for document in one.unjudged}
            one.record.negatives = [
                document for document in one.record.negatives if id(document) not in unseen
            ]

    def _round(self, asked: Sequence[Open], cache: Cache, summary: Summary) -> None:
        judging = self.settings.judging
        questions = [
            Question(
                one.record.query,
                tuple(document.text for document in one.record.positives),
                tuple(document.text for document in one.unjudged),
            )
            for one in asked
        ]
        seed = self.settings.rules.seed
        verdicts = judge(questions, judging.llms, cache, judging.method, seed)
        for one, verdict in zip(asked, verdicts, strict=True):
            if verdict is None:
                one.reason = "judge: its answer could not be read twice"
                continue
            self._apply(one, verdict, summary)

    def _apply(self, one: Open, verdict: Verdict, summary: Summary) -> None:
        """Do with false negatives what the mode says, and call in the reserve."""
        judging, judged = self.settings.judging, one.unjudged
        one.flagged += len(verdict.positive)
        summary.counts["dropped:judge"] += len(verdict.positive | verdict.removed)
        for place in sorted(verdict.positive | verdict.removed):
            document = judged[place]
            summary.example(
                "dropped:judge",
                {
                    "query": one.record.query,
                    "passage": document.text[:200],
                    "id": document.id,
                    "rank": document.rank,
                },
            )
        if one.flagged > judging.most:
            one.reason = f"judge: more than {judging.most} false negatives"
        elif judging.mode == "drop" and verdict.positive | verdict.removed:
            one.reason = "judge: a false negative"
        gone = {id(judged[place]) for place in verdict.positive | verdict.removed}
        one.record.negatives = [d for d in one.record.negatives if id(d) not in gone]
        if judging.mode == "relabel" and one.reason is None:
            self._relabel(one, [judged[place] for place in sorted(verdict.positive)], summary)
        missing = self.settings.rules.k + one.given - len(one.record.negatives)
        one.unjudged, one.reserve = one.reserve[:missing], one.reserve[missing:]
        one.record.negatives += one.unjudged

    def _relabel(self, one: Open, documents: Sequence[Document], summary: Summary) -> None:
        if not documents:
            return
        summary.counts["relabelled"] += len(documents)
        before = one.record.provenance.get("positives", {}).get("relabelled", [])
        told = {"by": f"embedlm {self.verb}", "judge": self.provenance["judge"]}
        added = [document.id for document in documents]
        one.record.provenance["positives"] = {**told, "relabelled": [*before, *added]}
        one.record.positives += documents

    def origin(self, one: Open) -> dict[str, Any]:
        """Return where the negatives of a record come from."""
        return {**self.provenance, "given": one.given}

    @staticmethod
    def kept(one: Open) -> int:
        """Return how many negatives of a record are none of this job's."""
        return one.given

    # -- the end ----------------------------------------------------------------------------------

    def _finding(self, one: Open, summary: Summary) -> Finding:
        record, k = one.record, self.settings.rules.k
        for document in record.documents:
            document.score = None if document.score is None else rounded(document.score)
        mined = len(record.negatives) - self.kept(one)
        if one.reason is not None:
            name = f"aside:{one.reason}"
            summary.counts[name] += 1
            summary.example(name, {"query": record.query})
            return Finding(record, one.reason)
        scorer = self.rankings.scorer
        record.provenance["negatives"] = self.origin(one)
        record.provenance["scores"] = {"by": f"embedlm {self.verb}", "model": scorer.name}
        summary.counts.update({"written": 1, "negatives": mined})
        if mined < k:
            summary.counts.update({"short": 1, "missing": k - mined})
            summary.example("short", {"query": record.query, "negatives": mined})
        return Finding(record)
