"""Token states become dense, sparse or multi-vector embeddings."""
