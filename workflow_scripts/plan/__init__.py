"""The expected cost of a study, measured by a pilot, and the progress of a run."""
