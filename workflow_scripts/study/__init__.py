"""A study as its config says it, read while Snakemake parses: nothing heavy is imported here."""
