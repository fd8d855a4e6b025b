"""Stages of the AirRep workflow: one module per rule, shared code in `lib`, scorers in `methods`."""

__version__ = "0.1.0"
