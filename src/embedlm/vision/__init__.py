"""Images: what callers give, and what a network's vision part reads of it."""

from embedlm.vision.picture import Picture, is_image, picture_of
from embedlm.vision.reader import ImageReader, open_reader, reads_images, settings_digest

__all__ = [
    "ImageReader",
    "Picture",
    "is_image",
    "open_reader",
    "picture_of",
    "reads_images",
    "settings_digest",
]
