"""The tasks that probe a model beside its quality: bias, robustness, long texts, cost.

They are written in suites like the others. A file whose name begins with `embedlm:` comes with the
package; its texts are ours, few, and made to be replaced by the user's own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from embedlm.evaluation.metrics import ranking_metric
from embedlm.evaluation.suite import (
    PROBES,
    LabelFields,
    PairFields,
    PairFile,
    RetrievalFields,
    RetrievalFiles,
    Task,
    TextFile,
)
from embedlm.schema.base import Part

__all__ = [
    "IDEAL",
    "KINDS",
    "SIGNED",
    "Association",
    "Attack",
    "Coreference",
    "Debiasing",
    "Exposure",
    "Forms",
    "Instructions",
    "LengthBias",
    "MinimalPairs",
    "Needle",
    "Negation",
    "PositionBias",
    "Robustness",
    "Searched",
    "Speed",
    "WorstCase",
]

IDEAL: dict[str, float] = {
    "effect": 0.0,
    "significant": 0.0,
    "preference": 0.5,
    "shift": 0.0,
    "exposure_gap": 0.0,
    "start_advantage": 0.0,
    "length_correlation": 0.0,
    "mean_loss": 0.0,
    "worst_loss": 0.0,
    "asr@5": 0.0,
    "asr@10": 0.0,
    "asr@20": 0.0,
    "asr@50": 0.0,
    "spread": 0.0,
    "probe": 0.5,
}
"""The metrics of which not the larger, but the one closer to this value is better."""
SIGNED = frozenset(
    {
        "effect",
        "shift",
        "exposure_gap",
        "start_advantage",
        "length_correlation",
        "mean_loss",
        "worst_loss",
        "spread",
        "texts_per_second",
        "tokens_per_second",
    }
)
"""The metrics that are no means of shares."""


# -- bias -------------------------------------------------------------------------------------


class AssociationFile(Part):
    """A file with an association test a record."""

    tests: str


class AssociationFields(Part):
    """The fields of a test: its name, two lists of targets and two of attributes.

    A list is one of texts, or a mapping with `examples`.
    """

    name: str = "test"
    first_targets: str = "targ1"
    second_targets: str = "targ2"
    first_attributes: str = "attr1"
    second_attributes: str = "attr2"


class Association(Task):
    """WEAT and SEAT: whether two groups of targets differ in their closeness to attributes."""

    kind: Literal["association"]
    files: AssociationFile
    fields: AssociationFields = AssociationFields()
    metric: Literal["effect", "significant"] = "effect"
    only: str = Field("*", description="The tests whose names match this pattern (fnmatch).")
    permutations: int = Field(10_000, gt=0)


class MinimalPairFields(Part):
    """The fields of a pair of sentences that differ in the group alone."""

    more: str = "sent_more"
    less: str = "sent_less"
    anchor: str | None = Field(
        None, description="A text to which both are compared; null: the words that both share."
    )
    group: str | None = Field("bias_type", description="null: pairs have no kinds.")


class MinimalPairs(Task):
    """CrowS-Pairs: a stereotyping sentence and the same one of another group."""

    kind: Literal["minimal_pairs"]
    files: PairFile
    fields: MinimalPairFields = MinimalPairFields()
    metric: Literal["preference", "shift"] = "preference"


class SentenceFile(Part):
    """A file of sentences."""

    sentences: str


class CoreferenceFields(Part):
    """The fields of a sentence of WinoBias."""

    text: str = "text"
    kind: str = "kind"
    type: str = "type"
    split: str = "split"


class Coreference(Task):
    """WinoBias: whether a stereotyped pronoun is closer to the sentence that it stands for."""

    kind: Literal["coreference"]
    files: SentenceFile
    fields: CoreferenceFields = CoreferenceFields()
    metric: Literal["preference", "shift"] = "preference"


class ExposureFiles(Part):
    """A corpus of documents of groups, and queries."""

    corpus: str
    queries: str


class ExposureFields(Part):
    """The fields of documents and queries. Documents of a query's topic merit it equally."""

    document_id: str | None = "_id"
    text: str = "text"
    group: str = "group"
    query: str = "text"
    topic: str | None = Field("topic", description="null: all documents are of all queries.")


class Exposure(Task):
    """How much of the readers' attention documents of a group get that all deserve alike."""

    kind: Literal["exposure"]
    files: ExposureFiles
    fields: ExposureFields = ExposureFields()
    metric: Literal["exposure_gap"] = "exposure_gap"
    group: str | None = Field(None, description="Whose gap is the metric; null: the first one's.")
    depth: int = Field(10, gt=0, description="Of skew@k.")


class Searched(Task):
    """A probe that searches a corpus of a retrieval task."""

    files: RetrievalFiles
    fields: RetrievalFields = RetrievalFields()
    ranked: str = Field("ndcg@10", description="The metric of rankings whose loss is measured.")

    @field_validator("ranked")
    @classmethod
    def _known(cls, name: str) -> str:
        ranking_metric(name)
        return name


class PositionBias(Searched):
    """Whether an answer is found wherever it stands among other passages."""

    kind: Literal["position"]
    metric: Literal["start_advantage"] = "start_advantage"
    passages: int = Field(5, gt=1, description="Of which a document is made; one is the answer.")


class LengthBias(Searched):
    """Whether long documents score higher or lower than short ones that answer as little."""

    kind: Literal["length"]
    metric: Literal["length_correlation"] = "length_correlation"


class DebiasingFiles(Part):
    """Texts that name a group, association tests, and a quality to be kept."""

    texts: str
    tests: str
    quality: str


class Debiasing(Task):
    """What a projection takes of a concept, and what it costs in quality."""

    kind: Literal["debiasing"]
    files: DebiasingFiles
    fields: AssociationFields = AssociationFields()
    pairs: PairFields = PairFields()
    text: str = Field("text", description="The field of the texts.")
    groups: dict[str, list[str]] = Field(
        description="Two lists of words; a text belongs to the group of which it has words."
    )
    only: str = Field("*", description="The tests whose names match this pattern (fnmatch).")
    methods: tuple[Literal["leace", "inlp", "hard"], ...] = Field(
        ("leace", "inlp", "hard"), min_length=1, description="The metric is of the first one."
    )
    metric: Literal["probe"] = "probe"

    @field_validator("groups")
    @classmethod
    def _two(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        if len(groups) != 2:
            raise ValueError(f"there are {len(groups)} groups; give two")
        return groups


# -- robustness -------------------------------------------------------------------------------


class NoiseFiles(RetrievalFiles):
    """A retrieval set and pairs of words that mean the same."""

    synonyms: str


class Robustness(Searched):
    """What changed queries lose."""

    kind: Literal["robustness"]
    files: NoiseFiles
    metric: Literal["mean_loss"] = "mean_loss"
    perturbations: tuple[str, ...] = Field(min_length=1)
    rate: float = Field(0.2, gt=0, le=1, description="Share of the words that are changed.")

    @field_validator("perturbations")
    @classmethod
    def _all_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from embedlm.evaluation.perturbations import check_perturbations

        check_perturbations(names)
        return names


class WorstCase(Searched):
    """What queries lose by the worst few changes, found by a greedy search."""

    kind: Literal["worst_case"]
    files: NoiseFiles
    metric: Literal["worst_loss"] = "worst_loss"
    steps: int = Field(2, gt=0, description="Words that are changed.")


class Attack(Searched):
    """How often a document that answers nothing is made to be found."""

    kind: Literal["attack"]
    metric: Literal["asr@5", "asr@10", "asr@20", "asr@50"] = "asr@10"
    texts: dict[str, str] = Field(
        description="What is written before a document; {query} is the query's text."
    )
    greedy_steps: int = Field(3, ge=0, description="Words added one by one; 0: none.")
    candidates: int = Field(20, gt=0, description="Words that are tried in a step.")


class Instructions(Searched):
    """How much rankings depend on the wording of the instruction."""

    kind: Literal["instructions"]
    metric: Literal["spread"] = "spread"
    wordings: tuple[str, ...] = Field(min_length=2)
    unrelated: tuple[str, ...] = Field((), description="Told apart; not part of the spread.")


class Negation(Task):
    """Whether a sentence is closer to one that says the same than to its negation."""

    kind: Literal["negation"]
    files: PairFile
    fields: PairFields = PairFields()
    metric: Literal["accuracy"] = "accuracy"
    least: float = Field(4.5, description="The gold similarity of pairs that say the same.")


# -- long texts and cost ----------------------------------------------------------------------


class FillerFile(Part):
    """A file of texts, of which long documents are made."""

    filler: str


class Needle(Task):
    """Long documents that differ in one sentence, which a query asks for (LongEmbed)."""

    kind: Literal["needle"]
    files: FillerFile
    text: str = Field("text", description="The field of the filler's texts.")
    metric: Literal["ndcg@1", "ndcg@10"] = "ndcg@1"
    ask: Literal["passkey", "needle"]
    tokens: int = Field(gt=63, description="Of a document; a word counts as 4/3 tokens.")
    documents: int = Field(100, gt=1)
    queries: int = Field(50, gt=1)


class Speed(Task):
    """Texts and tokens a second, memory, and bytes a vector."""

    kind: Literal["speed"]
    files: TextFile
    fields: LabelFields = LabelFields()
    metric: Literal["texts_per_second", "tokens_per_second"] = "texts_per_second"
    count: int = Field(500, gt=1, description="Texts of a run.")
    repeats: int = Field(5, gt=1)
    role: Literal["query", "document"] | None = None


class Forms(Searched):
    """The quality of shorter vectors and of smaller numbers."""

    kind: Literal["forms"]
    metric: Literal["ndcg@10"] = "ndcg@10"
    dims: tuple[int | None, ...] = Field((None, 256, 128, 64, 32), min_length=1)
    precisions: tuple[Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"], ...] = (
        Field(("float32", "int8", "binary"), min_length=1)
    )


KINDS: dict[str, type[Task]] = {
    "association": Association,
    "minimal_pairs": MinimalPairs,
    "coreference": Coreference,
    "exposure": Exposure,
    "position": PositionBias,
    "length": LengthBias,
    "debiasing": Debiasing,
    "robustness": Robustness,
    "worst_case": WorstCase,
    "attack": Attack,
    "instructions": Instructions,
    "negation": Negation,
    "needle": Needle,
    "speed": Speed,
    "forms": Forms,
}
"""The kinds of probes. `evaluation.kinds` has the function that scores each."""
PROBES.update(KINDS)
