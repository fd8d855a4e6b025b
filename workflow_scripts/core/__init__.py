"""What every stage builds on: files, tables, seeds, progress, errors, GPUs, process groups."""
