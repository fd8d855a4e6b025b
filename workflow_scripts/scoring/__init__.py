"""Scores of training examples and of groups of them, and the top examples of each test."""
