"""Subsets, the fine-tuning runs on them, and the loss-delta targets that come out."""
