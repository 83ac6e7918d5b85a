"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a server takes at once, and how long it waits."""

    body_bytes: int = 8 << 20
    """Of a request's body."""
    inputs: int = 2048
    """Texts of a request, as OpenAI allows."""
    request_tokens: int = 300_000
    """Tokens of a request, as OpenAI allows."""
    image_pixels: int = 1 << 25
    """Pixels of all images of a request, as their headers say."""
    queue_requests: int = 512
    """Requests that wait; more are refused with status 429."""
    queue_tokens: int = 600_000
    """Tokens that wait; one request is taken whatever it holds."""
    batch_tokens: int | None = None
    """Tokens that are run at once by one call of the engine; None: as many as four packs hold."""
    prefix_bytes: int = 256 << 20
    """Of keys, values and states of prompts that are kept for the next requests, a model."""
    timeout: float = 60.0
    """Seconds from a request's arrival to its answer; a request may ask for fewer."""
    header_timeout: float = 10.0
    """Seconds in which the headers of a request must have come."""
    body_timeout: float = 30.0
    """Seconds in which its body must have come."""
    keep_alive: float = 75.0
    """Seconds for which an idle connection is kept."""
    drain: float = 1.0
    """Seconds for which a server that was told to end still takes new connections."""
    drain_timeout: float = 30.0
    """Seconds after which it ends, whatever is still to be answered."""
