"""Stages of the AirRep workflow, one module per rule, and the modules that they share: one folder per domain."""

__version__ = "0.1.0"
