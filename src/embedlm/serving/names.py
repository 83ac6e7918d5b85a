"""By which names a server is asked, where it listens at this machine's own address.

A page of another site can have its own name point here (DNS rebinding) and then ask as if it were
from here. The Host header tells: a browser sends the name that the page has.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from embedlm.serving.failures import RequestError

__all__ = ["Names", "WrongNameError"]

_PRIVATE = ("localhost", "local", "internal")
"""Ends of names that nobody can buy."""


class WrongNameError(RequestError):
    """A request that names the server as only a page of another site does."""

    status, code = 421, "wrong_host"


@dataclass(frozen=True, slots=True)
class Names:
    """What the Host header of a request may say."""

    any: bool
    """Whether all names are right: other machines reach the server, by names of their own."""

    @classmethod
    def at(cls, host: str) -> Names:
        """Return the names of a server that listens at an address."""
        try:
            own = ip_address(host).is_loopback
        except ValueError:
            own = host == "localhost"
        return cls(not own)

    def check(self, given: bytes) -> None:
        """Refuse a name that a page of another site may have.

        Args:
            given: the Host header; names without a dot, and addresses, are nobody's.

        Raises:
            WrongNameError: it is one.
        """
        text = given.decode("latin-1").strip().lower()
        name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
        name = name.removesuffix(".")
        end = name.rpartition(".")[2]
        if self.any or end == name or end in _PRIVATE:
            return
        try:
            ip_address(name)
        except ValueError:
            raise WrongNameError(
                f"this server listens at this machine's own address, and {text[:80]!r} is another "
                "name; ask at http://localhost, have the proxy before it send Host: localhost, or "
                "start it with --api-key-file"
            ) from None
