"""A study as its config describes it. Imported while Snakemake parses, so nothing here imports a heavy library."""
