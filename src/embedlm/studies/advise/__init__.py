"""Advice: which model, in which form, to take for a corpus within a budget."""

from embedlm.studies.advise.advice import Advice, Budget, advise
from embedlm.studies.advise.candidates import Candidate
from embedlm.studies.advise.corpus import Corpus, read_corpus
from embedlm.studies.advise.named import NamedModel, check_models

__all__ = [
    "Advice",
    "Budget",
    "Candidate",
    "Corpus",
    "NamedModel",
    "advise",
    "check_models",
    "read_corpus",
]
