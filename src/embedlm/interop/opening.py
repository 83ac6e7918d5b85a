"""Opens a model with the options that SentenceTransformer takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import is_offline_mode, snapshot_download

import embedlm
from embedlm.errors import UnsupportedError
from embedlm.persistence.hub import layout_folder

if TYPE_CHECKING:
    from embedlm.embedder import Embedder

__all__ = ["opened"]

_DTYPES = ("dtype", "torch_dtype")
_ATTENTION = "attn_implementation"
_LOADING = ("low_cpu_mem_usage",)
"""Options that have no effect on a vector: weights are read one by one in any case."""

_OTHER_RUNTIMES = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model of the hub is looked for."""

    token: bool | str | None = None
    cache_folder: str | None = None
    revision: str | None = None
    local_files_only: bool | None = False


def opened(
    name: str, place: Place, device: Any, model_kwargs: Mapping[str, Any], recipe: str | None
) -> tuple[Embedder, Path]:
    """Load a model and return it with its folder.

    Args:
        name: a folder or hub id.
        place: of the hub; for a folder, where what it asks for of the hub is looked for.
        device: as in `embedlm.load`.
        model_kwargs: of transformers; dtype and attn_implementation are honoured.
        recipe: as in `embedlm.load`.

    Raises:
        UnsupportedError: other options of transformers.
    """
    options = dict(model_kwargs)
    dtype = next((options.pop(key) for key in _DTYPES if key in options), "auto")
    attention = options.pop(_ATTENTION, None) or "auto"
    refuse_options(**{key: True for key in options if key not in _LOADING})
    folder = name
    if not Path(name).exists() and place != Place():
        folder = snapshot_download(
            name,
            revision=place.revision,
            cache_dir=place.cache_folder,
            token=place.token,
            local_files_only=bool(place.local_files_only) or is_offline_mode(),
            ignore_patterns=list(_OTHER_RUNTIMES),
        )
    embedder = embedlm.load(
        folder,
        recipe,
        device=device,
        dtype=dtype or "auto",
        attn=attention,
        token=place.token,  # for the base of an adapter, which is downloaded too
        cache_dir=place.cache_folder,
    )
    return embedder, layout_folder(folder)


def refuse_options(**options: Any) -> None:
    """Refuse options for classes of transformers that are not used here.

    Raises:
        UnsupportedError: one of them is given.
    """
    given = [name for name, value in options.items() if value]
    if given:
        raise UnsupportedError(
            f"{', '.join(given)} cannot be honoured for a model that EmbedLM opens; allowed in "
            f"model_kwargs are dtype and {_ATTENTION}. Say the rest in a recipe, with embedlm.load "
            "and as_sentence_transformer()"
        )
