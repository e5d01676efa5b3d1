"""Evaluations and measurements: how good what a model writes is, and how fast."""
