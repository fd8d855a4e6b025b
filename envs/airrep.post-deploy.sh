#!/bin/sh
# Snakemake runs this inside a new conda environment, from the folder of the Snakefile: stages import the package.
python -m pip install --quiet --no-deps --editable .
