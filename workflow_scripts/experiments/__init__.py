"""The paper's experiments other than the LDS: runs are drawn, fine-tuned and evaluated."""
