"""Search of training examples by their scores for queries, from stored embeddings."""
