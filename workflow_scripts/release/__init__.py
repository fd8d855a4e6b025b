"""Package a trained encoder for others: folder, model card, hub."""
