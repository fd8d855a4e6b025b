"""The linear datamodeling score (LDS) of every method, and the check for leaked test examples."""
