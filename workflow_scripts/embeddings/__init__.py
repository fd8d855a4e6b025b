"""Embeddings of whole corpora, on disk and in tiles."""
