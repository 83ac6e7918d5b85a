"""What several heads gave for the same texts, and the scores between two of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix, vstack

from embedlm.errors import InputError
from embedlm.readout.heads import HEADS
from embedlm.readout.quantized import Ranges, in_floats
from embedlm.schema.arguments import check_arguments, short
from embedlm.schema.recipe import Recipe

__all__ = ["Embeddings", "as_embeddings", "finite_scores", "scores"]

Array = npt.NDArray[Any]


class Embeddings:
    """The outputs of several heads for the same n texts."""

    def __init__(
        self,
        dense: Array | None = None,
        sparse: csr_matrix | None = None,
        multi_vector: list[npt.NDArray[np.float32]] | None = None,
        **others: Any,
    ) -> None:
        """Hold the outputs of the heads that are given, by name.

        Args:
            dense: one vector a text, (n, D).
            sparse: weights over the vocabulary, (n, V).
            multi_vector: one array a text, (tokens, E).
            **others: of further heads.

        Raises:
            InputError: a name that is no head.
        """
        named = {"dense": dense, "sparse": sparse, "multi_vector": multi_vector, **others}
        unknown = [name for name in others if name not in HEADS]
        if unknown:
            raise InputError(f"{unknown[0]!r} is not a head; allowed: {', '.join(HEADS)}")
        self._values = {name: value for name, value in named.items() if value is not None}

    @property
    def dense(self) -> Array | None:
        """One vector a text, (n, D)."""
        return self._values.get("dense")

    @property
    def sparse(self) -> csr_matrix | None:
        """Weights over the vocabulary, (n, V)."""
        return self._values.get("sparse")

    @property
    def multi_vector(self) -> list[npt.NDArray[np.float32]] | None:
        """One array a text, (tokens, E)."""
        return self._values.get("multi_vector")

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads that there are outputs of."""
        return tuple(self._values)

    def __getitem__(self, head: str) -> Any:
        """Return the output of a head by its name."""
        if head not in self._values:
            raise InputError(
                f"there is no output of the head {head!r}; there are: "
                f"{', '.join(self._values) or 'none'}"
            )
        return self._values[head]

    def __len__(self) -> int:
        for name, value in self._values.items():
            return HEADS[name].count(value)
        return 0

    def __repr__(self) -> str:
        return f"Embeddings({len(self)} texts: {', '.join(self._values)})"


def as_embeddings(value: Any, what: str = "the vectors") -> Embeddings:
    """Return any kind of vectors as `Embeddings`.

    Raises:
        InputError: texts, or what is no array of numbers.
    """
    if isinstance(value, Embeddings):
        return value
    if hasattr(value, "detach"):
        value = _from_torch([value], what)[0]
    elif isinstance(value, list) and value and all(hasattr(one, "detach") for one in value):
        value = _from_torch(value, what)
        if all(hasattr(one, "tocsr") for one in value):
            value = vstack(value, format="csr")
    elif np.ma.is_masked(value):
        raise InputError(
            f"{what} has entries that are masked, and vectors have a number in each dimension; "
            "fill them, or leave these vectors out"
        )
    for name, head in HEADS.items():
        if name != "dense" and head.holds(value):
            return Embeddings(**{name: value})
    return Embeddings(dense=_dense(value, what))


def _from_torch(tensors: Sequence[Any], what: str) -> list[Any]:
    """Return tensors as arrays; sparse ones as CSR matrices.

    Raises:
        InputError: what holds no numbers, or a sparse tensor of more than two dimensions.
    """
    try:
        return [_array(tensor.detach().cpu()) for tensor in tensors]
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{what} is no tensor of vectors ({error}); give vectors (n, D) of real numbers"
        ) from error


def _array(tensor: torch.Tensor) -> Any:
    values = tensor.float() if tensor.is_floating_point() else tensor
    if values.layout == torch.strided:
        return values.numpy()
    rows = values.to_sparse_coo().coalesce()
    rows = rows.unsqueeze(0).coalesce() if rows.ndim == 1 else rows
    return csr_matrix((rows.values().numpy(), rows.indices().numpy()), shape=tuple(rows.shape))


def _dense(value: Any, what: str) -> Array:
    """Return dense vectors, (n, D); one vector is a row, and an empty list has none."""
    if isinstance(value, str | Mapping) or _holds_texts(value):
        raise InputError(
            f"{what} is {short(value)}: texts, not vectors; encode them first, as in "
            "m.similarity(m.encode(a), m.encode(b))"
        )
    try:
        array: Array = np.asanyarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} is no array of numbers ({error}); give vectors (n, D), all of one D"
        ) from error
    if array.dtype.kind not in "fiu" or array.ndim not in (1, 2):
        raise InputError(
            f"{what} is {short(value)}, {array.dtype} of the shape {array.shape}; give vectors of "
            "real numbers, (n, D)"
        )
    if array.ndim == 1:
        return array[None] if array.size else array.reshape(0, 0)
    return array


def _holds_texts(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        kind: str = value.dtype.kind
        return kind in "US" or (kind == "O" and any(isinstance(x, str) for x in value.flat))
    return isinstance(value, Sequence) and any(isinstance(one, str | bytes) for one in value)


def scores(
    a: Any,
    b: Any,
    heads: Sequence[str] | str | None,
    weights: Sequence[float] | None,
    recipe: Recipe,
    pairwise: bool,
    dim: int | None = None,
    ranges: Ranges | None = None,
) -> npt.NDArray[np.float32]:
    """Return the weighted sum of the heads' scores, (n, m) or, for pairs, (n,).

    The recipe says whether dense vectors are compared by cosine or dot, and whether MaxSim is a
    sum or a mean over the query's tokens. Quantised vectors are compared as what they stand for:
    packed bits as 1 and -1, which orders by Hamming distance.

    `dim` is the width of the model's dense vectors; its fitted `ranges` are for int8 and uint8
    vectors that do not say theirs.

    Raises:
        InputError: texts; a head that one side lacks; another number of weights than heads; NaN,
            infinity, or scores that float32 cannot hold.
    """
    check_arguments("similarity", heads=heads, weights=weights)
    left, right = as_embeddings(a, "a"), as_embeddings(b, "b")
    common = [name for name in HEADS if name in left.heads and name in right.heads]
    if heads is not None and not len(heads):
        raise InputError(f"heads is empty; give at least one of {', '.join(HEADS)}, or None")
    names = [heads] if isinstance(heads, str) else list(heads or common)
    missing = [name for name in names if name not in common]
    if missing or not names:
        raise InputError(
            f"no {missing[0] if missing else 'common'} vectors on both sides; "
            f"there are: {', '.join(common) or 'none'}"
        )
    shares = list(weights) if weights is not None else [1.0] * len(names)
    if len(shares) != len(names):
        raise InputError(f"{len(shares)} weights were given for {len(names)} heads")
    fitted = None if ranges is None or dim is None else ranges.by_form.get((dim, recipe.normalize))
    total: Any = 0
    for name, share in zip(names, shares, strict=True):
        sides = [
            _comparable(name, side[name], dim, fitted, what)
            for side, what in ((left, "a"), (right, "b"))
        ]
        with np.errstate(over="ignore", invalid="ignore"):
            left_side, right_side = _widened(sides)
            one = HEADS[name].score(left_side, right_side, recipe, pairwise=pairwise)
            total = total + share * one
    return finite_scores(np.asarray(total))


def _comparable(head: str, value: Any, dim: int | None, ranges: Any, what: str) -> Any:
    """Return a head's outputs as numbers that can be compared.

    Raises:
        InputError: NaN or infinity, which names the row.
    """
    if head == "dense":
        value = in_floats(_dense(value, what), dim=dim, ranges=ranges)
        with np.errstate(over="ignore"):
            value = np.asarray(value, dtype=np.float32)
    wrong = np.flatnonzero(~HEADS[head].finite(value))
    if len(wrong):
        raise InputError(
            f"{what}[{wrong[0]}] holds NaN or infinity, or a number beyond float32 ({head}); a "
            "model that runs in float16 gives such where its numbers overflow: load it with "
            "dtype='float32'"
        )
    return value


def _widened(sides: list[Any]) -> list[Any]:
    """Return two sides, an empty list among them having the width of the other side."""
    shapes: list[tuple[int, ...]] = [getattr(side, "shape", ()) for side in sides]
    for one, other in ((0, 1), (1, 0)):
        if shapes[one] == (0, 0) and len(shapes[other]) == 2:
            sides[one] = np.zeros((0, shapes[other][1]), np.float32)
    return sides


def finite_scores(scores: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return scores in float32.

    Raises:
        InputError: NaN or infinity, which names the place.
    """
    with np.errstate(over="ignore"):
        found = np.asarray(scores, dtype=np.float32)
    if not np.isfinite(found).all():
        place = ", ".join(map(str, np.argwhere(~np.isfinite(found))[0].tolist()))
        raise InputError(
            f"the score [{place}] is beyond float32, as the vectors hold numbers too large for "
            "their product; normalise them (normalize=True), or scale them down"
        )
    return found
