"""What a study will cost, measured by a pilot, and how far a run is."""
