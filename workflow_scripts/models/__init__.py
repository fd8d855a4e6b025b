"""Fetch, load and save models, and run them on packed batches of tokens."""
