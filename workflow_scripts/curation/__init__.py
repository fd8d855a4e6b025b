"""Training files chosen by scores, and lists of harmful rows for review, with the columns of their sources."""
