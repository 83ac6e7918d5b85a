"""Token states become dense, sparse or multi-vector embeddings."""

from embedlm.readout.embeddings import Embeddings
from embedlm.readout.heads import HEADS
from embedlm.readout.parts import Parts
from embedlm.readout.readout import OtherNetworkError, Readout
from embedlm.readout.states import PackStates

__all__ = ["HEADS", "Embeddings", "OtherNetworkError", "PackStates", "Parts", "Readout"]
