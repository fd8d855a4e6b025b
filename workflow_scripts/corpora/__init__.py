"""Read corpora of any common format into tables of prompts and responses."""
