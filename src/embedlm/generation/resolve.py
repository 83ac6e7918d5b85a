"""Turns what a user names as a generator into that generator."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from embedlm.errors import GenerationError
from embedlm.generation.endpoint import EndpointGenerator
from embedlm.generation.generator import FunctionGenerator, Generator
from embedlm.generation.local import OwnGenerator, StoredGenerator, model_name

__all__ = ["resolve_generator"]


def resolve_generator(spec: Any) -> Generator:
    """Return the generator that a user named.

    Args:
        spec: a `Generator`; a function (chat, sampling, seed) -> answer;
            "http://host:port/v1#model"; a model folder or hub id; or an `Embedder`, whose model
            then writes.

    Raises:
        GenerationError: none of these, or an endpoint without a model's name.
    """
    if isinstance(spec, Generator):
        if not isinstance(spec.name, str) or not spec.name:
            raise GenerationError(
                f"the generator's name is {spec.name!r}; give it one of its own, a string, under "
                "which its answers are cached"
            )
        return spec
    if isinstance(spec, str) and spec.startswith(("http://", "https://")):
        return _endpoint(spec)
    if isinstance(spec, str | os.PathLike):
        return _stored(str(spec), model_name(str(spec)))
    backbone = getattr(spec, "backbone", None)
    if backbone is not None:
        return _of_backbone(backbone)
    if callable(spec):
        return FunctionGenerator(spec)
    raise GenerationError(
        f"generator is {type(spec).__name__}; give a model folder or hub id, "
        "http://host:port/v1#model, a function, or an object with name and generate()"
    )


def _endpoint(spec: str) -> Generator:
    url, _, model = spec.partition("#")
    if not model:
        raise GenerationError(f"generator {spec!r} names no model; write http://host:port/v1#model")
    return EndpointGenerator(url, model)


@lru_cache(maxsize=1)
def _stored(source: str, name: str) -> StoredGenerator:
    """Return the generator of a folder or hub id; the last one stays loaded for the next call."""
    return StoredGenerator(source, name)


_copies: WeakKeyDictionary[Any, StoredGenerator] = WeakKeyDictionary()
"""Second copies of models that were loaded without their head, by backbone."""


def _of_backbone(backbone: Any) -> Generator:
    """Return a generator with an embedder's network, or with a second copy that has a head."""
    if backbone.head is not None and backbone.causal:
        return OwnGenerator(backbone)
    if backbone not in _copies:
        how = {"adapters": backbone.merged, "device": backbone.device}
        name = model_name(backbone.name, backbone.merged)
        _copies[backbone] = StoredGenerator(backbone.name, name, **how)
    return _copies[backbone]
