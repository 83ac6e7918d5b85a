"""Advice: which model, in which form, to take for a corpus within a budget."""

from embedlm.studies.advise.advice import Advice, Budget, advise, check_models
from embedlm.studies.advise.candidates import Candidate
from embedlm.studies.advise.corpus import Corpus, read_corpus

__all__ = ["Advice", "Budget", "Candidate", "Corpus", "advise", "check_models", "read_corpus"]
