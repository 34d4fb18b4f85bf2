"""Checkpoints of this repository, and the code that makes them; not installed."""
