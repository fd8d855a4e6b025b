"""Shared code of the stages; nothing here knows Snakemake, except `stage`, the bridge."""
