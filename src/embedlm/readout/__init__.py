"""Token states become dense, sparse or multi-vector embeddings."""

from embedlm.readout.embeddings import Embeddings
from embedlm.readout.heads import HEADS
from embedlm.readout.parts import Parts
from embedlm.readout.readout import Readout
from embedlm.readout.states import PackStates

__all__ = ["HEADS", "Embeddings", "PackStates", "Parts", "Readout"]
