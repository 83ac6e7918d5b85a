"""Bridges to other libraries: each file makes an Embedder what one of them asks for.

sentence_transformers.py (reached by `Embedder.as_sentence_transformer()`), sklearn.py,
langchain.py, llamaindex.py, haystack.py. Nothing here is imported until it is asked for.
"""
