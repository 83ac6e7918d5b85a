"""A teacher's vectors on disk: each block of texts in a file that is named after its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.backbone.content import content_digest
from embedlm.errors import JobError
from embedlm.jobs import disk_errors
from embedlm.jobs.atomic import write_file

__all__ = ["TeacherVectors", "identity_of"]

Floats = npt.NDArray[np.float32]


def identity_of(name: str, recipe: Any = None) -> str:
    """Return what tells a model from others: its files wherever they lie, or its hub id.

    Args:
        name: folder, GGUF file or hub id.
        recipe: by which it is read; None: it does not count.
    """
    own = "" if recipe is None else json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    files = content_digest(name) or name
    return hashlib.sha256(f"{own}{files}".encode()).hexdigest()[:16]


class TeacherVectors:
    """Vectors that are computed at most once."""

    def __init__(
        self, folder: Path, identity: str, encode: Callable[[Sequence[str], str | None], Floats]
    ) -> None:
        """Keep a teacher's vectors.

        Args:
            folder: of the files; several teachers may share it.
            identity: of the teacher.
            encode: gives the vectors of texts in a role, (n, width).
        """
        self.folder, self.identity, self.encode = folder, identity, encode

    def block(self, texts: Sequence[str], role: str | None) -> Floats:
        """Return the vectors of a block of texts, (n, width).

        Raises:
            JobError: the file of the block is empty or damaged, or cannot be written.
        """
        key = json.dumps([self.identity, role, list(texts)], ensure_ascii=True).encode()
        file = self.folder / f"{hashlib.sha256(key).hexdigest()[:32]}.npy"
        if file.is_file():
            return self._read(file, len(texts))
        vectors = np.ascontiguousarray(self.encode(texts, role), np.float32)
        with disk_errors(self.folder, "Make room and run the same command again"):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(file, lambda handle: np.save(handle, vectors))
        return vectors

    def _read(self, file: Path, count: int) -> Floats:
        wrong = f"it has {file.stat().st_size} bytes"
        try:
            vectors = np.load(file, allow_pickle=False)
            fits = vectors.ndim == 2 and len(vectors) == count and vectors.dtype == np.float32
            if fits and bool(np.isfinite(vectors).all()):
                return np.asarray(vectors)
            wrong = f"it holds {vectors.dtype} of the shape {vectors.shape} for {count} texts"
        except (ValueError, EOFError, OSError) as error:
            wrong += f" ({' '.join(str(error).split())[:100]})"
        raise JobError(
            f"the teacher's vectors in {file} are empty or damaged: {wrong}. Remove that file and "
            "run the same command again: they are computed anew"
        )
