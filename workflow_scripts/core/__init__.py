"""What every stage rests on: files, tables, seeds, progress, errors, GPUs, groups of processes."""
