"""The results as a page and as printed tables."""
