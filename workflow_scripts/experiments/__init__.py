"""The paper's experiments beside the LDS."""
