"""Hard negatives for training records, filters of false ones, and scores for distillation."""

from embedlm.mining.filters import FILTERS, Filters
from embedlm.mining.hard_negatives import mine
from embedlm.mining.outputs import Mined
from embedlm.mining.refining import refine
from embedlm.mining.scores import score

__all__ = ["FILTERS", "Filters", "Mined", "mine", "refine", "score"]
