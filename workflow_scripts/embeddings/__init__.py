"""Embeddings of whole corpora: computed, stored on disk, and read in tiles."""
