"""Texts rewritten by a language model before they are embedded (GenEOL)."""

from embedlm.transform.geneol import transform_texts

__all__ = ["transform_texts"]
