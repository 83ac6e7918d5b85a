"""What a head is: one kind of output, with everything that the package asks of it.

To add a head: its options in `embedlm.schema.heads`, a class here beside the others, one line in
`HEADS` of `embedlm.readout.heads`, one row in `tests/readout/test_readout.py`.

Shapes: B texts of a pack, n texts of a call, X columns of a head's gradient row, Q and M texts that
are compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from embedlm.backbone import Backbone
    from embedlm.readout.readout import Readout
    from embedlm.readout.states import PackStates
    from embedlm.schema.heads import Over
    from embedlm.schema.recipe import Recipe

__all__ = ["Collector", "Head"]

Options = TypeVar("Options")
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class Collector(Protocol):
    """Gathers a head's outputs, pack after pack, in any order."""

    def add(self, target_B: Indices, share_B: Floats, output: Any) -> None:
        """Take the output of a pack.

        Args:
            target_B: the text of the call that each row belongs to.
            share_B: the weight of each row in its text's average; a text's shares add up to 1.
            output: of `Head.read`.
        """

    def value(self, order_n: Indices) -> Any:
        """Return the outputs of the texts in an order."""


class Head(ABC, Generic[Options]):
    """One kind of output: how it is read, learnt, gathered and compared."""

    kind: ClassVar[str]
    """Its name in recipes and in `Embeddings`."""
    averages: ClassVar[bool] = True
    """Whether the outputs of several prompts of one text can be averaged."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone whose states it cannot read."""

    # -- reading ------------------------------------------------------------------------------

    @property
    def reads_lm_head(self) -> bool:
        """Whether it needs the language-model head's logits."""
        return False

    @property
    def stop_words(self) -> str | None:
        """The stop-word list, where outputs are restricted to a text's own words; else None."""
        return None

    @property
    def over(self) -> Over | None:
        """The segments that it reads; None: those of the pooling."""
        return None

    @abstractmethod
    def read(self, readout: Readout, states: PackStates) -> Any:
        """Return the outputs of a pack's texts, without a gradient."""

    @abstractmethod
    def collector(self, readout: Readout, count: int) -> Collector:
        """Return an empty collector for the outputs of `count` texts."""

    def gathered(self, readout: Readout, states: PackStates) -> Tensor:
        """Return what the head gathers from states of width 1, (N, 1): `shares` asks for it."""
        over = readout.pooling.over if self.over is None else self.over
        return states.tokens(over).states(states.h_TD)

    # -- training -----------------------------------------------------------------------------

    @abstractmethod
    def gradient_rows(self, readout: Readout, states: PackStates, longest: int) -> Tensor:
        """Return one row a text with its gradient, v_BX.

        Args:
            readout: whose pooling and layers are used.
            states: of a pack.
            longest: tokens of the batch's longest text.
        """

    @abstractmethod
    def columns(self, readout: Readout, longest: int) -> int:
        """Return the width X of a gradient row."""

    # -- comparing ----------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def holds(value: Any) -> bool:
        """Tell whether a value has the form of this head's outputs."""

    @staticmethod
    @abstractmethod
    def count(value: Any) -> int:
        """Return how many texts a value holds the outputs of."""

    @staticmethod
    @abstractmethod
    def finite(value: Any) -> npt.NDArray[np.bool_]:
        """Tell for each text whether its output is free of NaN and infinity, (n,)."""

    @staticmethod
    @abstractmethod
    def score(a: Any, b: Any, recipe: Recipe, *, pairwise: bool) -> Floats:
        """Return the scores of every a with every b, (Q, M), or of a[i] with b[i], (Q,)."""
