"""The runtimes to compare: EmbedLM, sentence-transformers and OpenAI-compatible endpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from embedlm.errors import InputError, ModelError, require
from embedlm.loader import load

__all__ = ["Runtime", "is_foreign", "open_runtime"]

Vectors = npt.NDArray[np.float32]
_PEER = "st:"
_ADDRESS = ("http://", "https://")
_BATCH = 64


@dataclass(slots=True)
class Runtime:
    """One side of a comparison."""

    name: str
    kind: str
    """embedlm, sentence-transformers or endpoint."""
    model: Any
    role: str | None = None

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Return one vector for each text, (n, D)."""
        if self.kind == "endpoint":
            return self._requested(texts)
        if self.kind == "embedlm":
            vectors = self.model.encode(list(texts), role=self.role, heads=["dense"])
        else:
            named = {"prompt_name": self.role} if self.role in (self.model.prompts or {}) else {}
            if self.role not in (None, "query", "document", *named.values()):
                raise InputError(
                    f"{self.name!r} has no prompt named {self.role!r}; allowed: "
                    f"{', '.join(self.model.prompts) or 'no role at all'}"
                )
            calls = {"query": self.model.encode_query, "document": self.model.encode_document}
            call = calls.get(str(self.role), self.model.encode)  # these tell a Router the role
            vectors = call(list(texts), show_progress_bar=False, **named)
        return np.asarray(vectors, dtype=np.float32)

    def _requested(self, texts: Sequence[str]) -> Vectors:
        address, _, name = self.name.partition("#")
        rows: list[Any] = []
        try:
            for start in range(0, len(texts), _BATCH):
                part = list(texts[start : start + _BATCH])
                answer = self.model.embeddings.create(model=name, input=part)
                in_order = sorted(answer.data, key=lambda entry: entry.index)
                rows += [entry.embedding for entry in in_order]
        except Exception as error:  # the library's own errors, and the network's
            raise ModelError(f"{address} gave no embeddings: {str(error)[:200]}") from error
        if len(rows) != len(texts):
            raise ModelError(f"{address} gave {len(rows)} embeddings for {len(texts)} texts")
        return np.asarray(rows, dtype=np.float32)

    def ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        """Return the token ids of each text; None where the runtime does not report them."""
        if self.kind == "embedlm":
            batch = self.model.render(list(texts), role=self.role)
            return None if isinstance(batch, list) else list(batch.ids)
        if self.kind == "endpoint" or hasattr(self.model[0], "sub_modules"):
            return None  # a Router has a tokenizer for each role
        prompt = (self.model.prompts or {}).get(self.role or self.model.default_prompt_name, "")
        limit = self.model.max_seq_length
        whole = [prompt + text for text in texts]
        if isinstance(self.model.tokenizer, Tokenizer):  # of a table
            return [one.ids for one in self.model.tokenizer.encode_batch(whole, False, False)]
        encoded = self.model.tokenizer(whole, truncation=limit is not None, max_length=limit)[
            "input_ids"
        ]
        return [list(row) for row in encoded]

    def spell(self, ids: Sequence[int]) -> str:
        """Return tokens as text."""
        return str(self.model.tokenizer.decode(list(ids)))


def is_foreign(spec: str) -> bool:
    """Tell whether another library, or a server, runs the model that a spec names."""
    return spec.startswith((*_ADDRESS, _PEER))


def open_runtime(
    spec: str, recipe: Any = None, *, role: str | None = None, dtype: str = "auto"
) -> Runtime:
    """Return the runtime that a spec names.

    Args:
        spec: a folder, hub id or "builtin" (EmbedLM), `st:FOLDER` (sentence-transformers), or
            `http://host/v1#model` (an OpenAI-compatible endpoint; $OPENAI_API_KEY is sent).
        recipe: the recipe, where EmbedLM runs the model.
        role: query, document or another that the model knows.
        dtype: the dtype, where EmbedLM runs the model.

    Raises:
        InputError: a recipe, where another library runs the model.
        ModelError: the model cannot be opened.
        MissingExtraError: the runtime's library is not installed.
    """
    if recipe is not None and is_foreign(spec):
        raise InputError(
            f"the recipe {recipe!r} was given for {spec!r}, which EmbedLM does not run; leave "
            "the recipe out"
        )
    if spec.startswith(_ADDRESS):
        address, _, name = spec.partition("#")
        if not name:
            raise InputError(f"{spec!r} names no model; write http://host:port/v1#model")
        openai = require("openai", "synth")
        key = os.environ.get("OPENAI_API_KEY") or "none"
        client = openai.OpenAI(base_url=address, api_key=key, max_retries=2)
        return Runtime(spec, "endpoint", client, role)
    if spec.startswith(_PEER):
        peer = require("sentence_transformers", "eval")
        try:
            model = peer.SentenceTransformer(
                spec.removeprefix(_PEER), device="cpu", trust_remote_code=False
            )
        except Exception as error:  # the library's own errors have no common base
            raise ModelError(
                f"sentence-transformers cannot open {spec.removeprefix(_PEER)!r}: "
                f"{str(error)[:200]}"
            ) from error
        return Runtime(spec, "sentence-transformers", model, role)
    return Runtime(spec, "embedlm", load(spec, recipe, dtype=dtype), role)
