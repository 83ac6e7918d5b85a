"""What tells a model from others: the content of its files, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from embedlm.backbone.adapter_files import split_adapters
from embedlm.backbone.builtin import BUILTIN
from embedlm.backbone.gguf_model import LINK
from embedlm.errors import EmbedLMError

__all__ = ["content_digest", "files_digest"]

_KINDS = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".jinja", ".model", ".txt")
"""Endings of the files that states depend on; a card does not change them."""
_WHOLE = 1 << 26
"""Bytes up to which a file is read whole."""
_PIECES, _PIECE = 4096, 1 << 12
"""Of a larger file, so many pieces of so many bytes are read, spread over it: of the weights of a
model tuned in one layer, the ends are those of the model before."""


def content_digest(source: str | Path) -> str | None:
    """Return a digest of all that a model is; None where it has no files here (a hub id).

    Args:
        source: the name of a built-in model; or what `files_digest` takes. The base of an adapter
            counts, so far as it can be found.
    """
    built_in = BUILTIN.get(str(source))
    if built_in is not None:
        return _lasting_digest(built_in)
    own = files_digest(source)
    if own is None:
        return None
    try:
        base, adapters = split_adapters(str(source))
    except EmbedLMError:  # it cannot be loaded alone, and is told where it is
        return own
    if not adapters:
        return own
    parts = [*map(files_digest, adapters), content_digest(base) or base]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@lru_cache
def _lasting_digest(folder: Path) -> str | None:
    """Return the digest of a folder that does not change while this process runs."""
    return files_digest(folder)


def files_digest(source: str | Path) -> str | None:
    """Return a digest of a model's files, or of a GGUF file; None where there are none.

    Args:
        source: a folder, with all below it, or a file. A folder that stands for a GGUF file has the
            digest of that file.
    """
    path = Path(source)
    path = path / LINK if (path / LINK).is_file() else path
    if path.is_file():
        files = {"": path}
    else:
        every = (one for one in path.rglob("*") if one.suffix in _KINDS and one.is_file())
        files = {str(one.relative_to(path)): one for one in sorted(every)}
    if not files:
        return None
    digest = hashlib.sha256()
    for name, file in files.items():
        size = file.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        with file.open("rb") as handle:
            for part in _parts(handle, size):
                digest.update(part)
    return digest.hexdigest()[:16]


def _parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield a file's content; of a large one, pieces from its beginning to its end."""
    if size <= _WHOLE:
        yield file.read()
        return
    for piece in range(_PIECES):
        file.seek(piece * (size - _PIECE) // (_PIECES - 1))
        yield file.read(_PIECE)
