"""The attribution encoder and its training."""
