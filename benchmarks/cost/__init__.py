"""Predicted cost of a bundle: FLOPs, memory traffic, memory, and the time on a named GPU.

A graph's nodes (`graph`) are counted and put into the kernels an engine would make of them (`work`), and set against a
GPU's peaks (`gpus`, `prediction`). The result is a prediction, not a measurement.
"""
