"""A study as its config says it: sections, jobs, specs, costs. Read while Snakemake parses, so nothing heavy is imported."""
