"""Causal LMs: tokenised corpora, losses, fine-tuning, generation."""
