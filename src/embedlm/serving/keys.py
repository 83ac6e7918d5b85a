"""API keys: only their digests are kept, and none is found out by how long a comparison takes."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from embedlm.errors import InputError
from embedlm.serving.failures import UnauthorizedError

__all__ = ["Keys"]

_DIGEST = "sha256:"
_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Keys:
    """The digests of the keys that open a server; none: it is open to all."""

    digests: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: str | Path) -> Keys:
        """Return the keys of a file: one a line, as it is or as `sha256:` and its digest in hex.

        Raises:
            InputError: no such file, no key in it, or one that could be guessed.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the key file {str(path)!r} cannot be read: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InputError(f"the key file {str(path)!r} holds no key; write one a line")
        return cls(tuple(_digest(line, number) for number, line in enumerate(found, 1)))

    def check(self, given: Sequence[str]) -> str | None:
        """Return a short name of the key that was given; None where the server is open.

        Args:
            given: what the request's headers hold.

        Raises:
            UnauthorizedError: none of them is known.
        """
        if not self.digests:
            return None
        known: bytes | None = None
        for one in given:
            digest = sha256(one.encode("latin-1")).digest()  # the bytes as they were sent
            for held in self.digests:  # all of them, so that the time says nothing
                if hmac.compare_digest(digest, held):
                    known = held
        if known is None:
            raise UnauthorizedError(
                "this server wants an API key; give one it knows: Authorization: Bearer KEY"
            )
        return known.hex()[:8]


def _digest(line: str, number: int) -> bytes:
    if line.startswith(_DIGEST):
        try:
            digest = bytes.fromhex(line.removeprefix(_DIGEST))
        except ValueError:
            digest = b""
        if len(digest) != sha256().digest_size:
            raise InputError(f"key {number} is no SHA-256 digest; write sha256: and 64 hex digits")
        return digest
    if len(line) < _SHORTEST:
        raise InputError(
            f"key {number} has {len(line)} characters and could be guessed; take {_SHORTEST} or "
            "more, e.g. of: openssl rand -hex 24"
        )
    return sha256(line.encode()).digest()
