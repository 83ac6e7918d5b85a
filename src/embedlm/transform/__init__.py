"""Texts rewritten by a language model before they are embedded (GenEOL)."""

from embedlm.transform.geneol import transform_texts
from embedlm.transform.items import transform_items

__all__ = ["transform_items", "transform_texts"]
