"""Subsets of training examples, the fine-tuning runs on them, and the targets computed from their losses."""
