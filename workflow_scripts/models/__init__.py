"""Loading models and running them on packed batches of tokens."""
