"""A trained encoder as others take it: folder, model card, hub."""
