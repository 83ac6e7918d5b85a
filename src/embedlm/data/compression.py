"""Files compressed by gzip, xz or Zstandard, read as if they were not."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from embedlm.errors import require

__all__ = ["COMPRESSIONS", "DAMAGE", "Meter", "existing", "split_compression", "unpacked"]

COMPRESSIONS = (".gz", ".xz", ".zst")
DAMAGE = (EOFError, zlib.error, lzma.LZMAError)
"""Errors, besides OSError, that damaged or incomplete compressed data raise."""
_BUFFER = 1 << 16


def split_compression(path: Path) -> tuple[Path, str]:
    """Return the path without its compression's suffix, and that suffix ("" for none)."""
    suffix = path.suffix.lower()
    return (path.with_suffix(""), suffix) if suffix in COMPRESSIONS else (path, "")


def existing(path: Path) -> Path | None:
    """Return the path, or the path with .gz, .xz or .zst: whichever is there; None: neither."""
    packed = [path.with_name(path.name + end) for end in COMPRESSIONS] if path.name else []
    candidates = (path, *packed)
    return next((file for file in candidates if os.path.exists(file)), None)


class Meter(io.RawIOBase):
    """A stream that counts the bytes that are read from it."""

    def __init__(self, stream: Any) -> None:
        self.bytes = 0
        # One system call each, so that a line is returned as soon as a pipe has delivered it.
        self._readinto: Callable[[Any], int | None] = getattr(stream, "readinto1", stream.readinto)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Fill the buffer as far as there is data."""
        count = self._readinto(buffer)
        self.bytes += count or 0
        return count


@contextmanager
def unpacked(stream: Meter, compression: str) -> Iterator[BinaryIO]:
    """Yield the decompressed bytes of a stream.

    Args:
        stream: the file's bytes; the underlying stream is not closed.
        compression: .gz, .xz, .zst, or "" for none.

    Raises:
        MissingExtraError: .zst before Python 3.14 without backports.zstd.
        EOFError: while reading: the data end too early.
        OSError: while reading: the data are damaged.
    """
    with closing(_opened(io.BufferedReader(stream, _BUFFER), compression)) as file:
        try:
            yield cast("BinaryIO", file)
        except Exception as error:
            if type(error).__name__ == "ZstdError":  # its class is there only with the module
                raise OSError(str(error)) from error
            raise


def _opened(stream: io.BufferedReader, compression: str) -> Any:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=stream)
    if compression == ".xz":
        return lzma.LZMAFile(stream)
    if compression == ".zst":
        module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        return require(module, "zst").ZstdFile(stream)
    return stream
