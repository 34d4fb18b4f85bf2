"""Measurements, side by side with the published formulation."""
