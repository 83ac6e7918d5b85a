"""From images to what a network's vision part reads, by the checkpoint's own processor."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from embedlm.backbone import Backbone
from embedlm.backbone.config import unloadable
from embedlm.backbone.images import Pixels
from embedlm.backbone.quiet import quiet
from embedlm.backbone.towers import TOWERS
from embedlm.errors import InputError, ModelError, UnsupportedError, require
from embedlm.schema.image import Image
from embedlm.vision.picture import Picture

__all__ = ["ImageReader", "keep_settings", "open_reader", "reads_images", "settings_digest"]

BY_PATCHES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Types of networks that read an image in its own size: each patch of it, merged, is a token."""
NETWORKS = (*BY_PATCHES, "paligemma", *TOWERS)
"""Types of networks whose images are read; the others read them in one size."""
_SETTINGS = ("preprocessor_config.json", "processor_config.json")
"""Files that say how images are read."""


class ImageReader:
    """Reads images for one network."""

    def __init__(self, processor: Any, token: str | None, tokens: int | None) -> None:
        """Take the parts.

        Args:
            processor: of transformers, for images.
            token: the token that stands for each part of an image in a prompt; None: images have a
                tower of their own, and no prompt.
            tokens: how many of them each image has; None: by its size.
        """
        self.processor = processor
        self.token = token
        self.tokens = tokens

    def read(self, picture: Picture, options: Image) -> Pixels:
        """Return an image as the network reads it.

        Args:
            picture: the image.
            options: the recipe's.

        Raises:
            InputError: it cannot be read, or has a form that the network does not take.
            UnsupportedError: the recipe asks for a size that the network does not read.
        """
        size = self._size(options)
        pixels = picture.pixels()
        if self.tokens is not None:
            read = self.processor(images=[pixels], return_tensors="pt")
            return Pixels({"pixel_values": read["pixel_values"]}, self.tokens, on_grid=False)
        try:
            read = self.processor(images=[pixels], size=size, return_tensors="pt")
        except ValueError as error:  # too long and thin, say
            raise InputError(f"{picture.name} cannot be taken by the model: {error}") from error
        grid = read["image_grid_thw"]
        tokens = int(grid.prod()) // self.processor.merge_size**2
        tensors = {"pixel_values": read["pixel_values"], "image_grid_thw": grid}
        return Pixels(tensors, tokens, on_grid=options.positions == "grid")

    def count(self, width: int, height: int, options: Image) -> int:
        """Return how many tokens an image of a size in pixels has, without reading it.

        Raises:
            InputError: it has a form that the network does not take.
            UnsupportedError: see `read`.
        """
        size = self._size(options)
        if self.tokens is not None:
            return self.tokens
        limits = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
        try:
            patches = self.processor.get_number_of_image_patches(height, width, limits)
        except ValueError as error:
            raise InputError(f"an image cannot be taken by the model: {error}") from error
        return int(patches) // int(self.processor.merge_size) ** 2

    def _size(self, options: Image) -> dict[str, int]:
        """Return the least and the most pixels of an image, as the processor calls them."""
        if self.tokens is not None:
            for name in ("min_pixels", "max_pixels"):
                if getattr(options, name) is not None:
                    raise UnsupportedError(
                        f"image.{name} is for networks that read each image in its own size, and "
                        "this one reads all in one; leave it out"
                    )
            return {}
        own = dict(self.processor.size)
        least = options.min_pixels or own["shortest_edge"]
        most = options.max_pixels or own["longest_edge"]
        if least > most:
            raise UnsupportedError(
                f"the recipe and the checkpoint ask for images of at least {least} and at most "
                f"{most} pixels; give both image.min_pixels and image.max_pixels"
            )
        return {"shortest_edge": least, "longest_edge": most}


def reads_images(backbone: Backbone) -> bool:
    """Tell whether a network has a vision part whose images are read."""
    return str(backbone.config.model_type) in NETWORKS and not backbone.static


def open_reader(backbone: Backbone) -> ImageReader:
    """Return what reads images for a network.

    Raises:
        MissingExtraError: Pillow is not installed.
        ModelError: the checkpoint has no settings for images.
        UnsupportedError: the network has no vision part, or one of another kind.
    """
    kind = str(backbone.config.model_type)
    if not reads_images(backbone):
        why = "by this recipe no layer is run" if backbone.static else f"it is {kind!r}"
        raise UnsupportedError(
            f"{backbone.name!r} reads texts alone: {why}. Images are read by networks of the types "
            f"{', '.join(NETWORKS)}, as of the recipes qwen3-vl-embedding, gme, vlm2vec, colqwen2, "
            "colpali, clip and siglip; leave the images out, or take such a model"
        )
    require("PIL.Image", "image")
    from transformers import AutoImageProcessor

    try:
        with quiet():
            # Without torchvision, whose other way to shrink images gives other vectors.
            processor = AutoImageProcessor.from_pretrained(backbone.name, backend="pil")
    except OSError as error:
        raise ModelError(
            f"{backbone.name!r} has no preprocessor_config.json, which says how images are read; "
            "add the one that was published with the model"
        ) from error
    except Exception as error:  # the library's own errors have no common base
        raise unloadable(backbone.name, "image processor", error) from error
    if kind in TOWERS:
        return ImageReader(processor, None, 1)
    token = str(backbone.tokenizer.convert_ids_to_tokens(backbone.config.image_token_id))
    eyes = backbone.config.vision_config
    by_size = kind in BY_PATCHES
    return ImageReader(
        processor, token, None if by_size else (eyes.image_size // eyes.patch_size) ** 2
    )


def keep_settings(backbone: Backbone, folder: Path) -> None:
    """Copy the files that say how a network's images are read, where there are some."""
    for file in _settings(backbone):
        shutil.copyfile(file, folder / file.name)


def settings_digest(backbone: Backbone) -> str:
    """Return a hash of the files that say how a network's images are read."""
    seen = hashlib.sha256()
    for file in _settings(backbone):
        seen.update(f"{file.name}\0".encode() + file.read_bytes())
    return seen.hexdigest()[:16]


def _settings(backbone: Backbone) -> list[Path]:
    """Return those of the files that there are."""
    if str(backbone.config.model_type) not in NETWORKS:
        return []
    silent: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    silent["_raise_exceptions_for_connection_errors"] = False
    found = (cached_file(backbone.name, name, **silent) for name in _SETTINGS)
    return [Path(file) for file in found if file is not None and Path(file).is_file()]
