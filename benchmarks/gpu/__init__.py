"""Checks and benchmarks of a GPU, run by `benchmarks/gpu_acceptance.py`.

They need torch, transformers, pyarrow, scikit-learn, scipy, safetensors, peft and pydantic, and neither a network nor
what the workflow needs besides (Snakemake, DeepSpeed).
"""
