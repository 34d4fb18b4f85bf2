"""What a bundle costs on paper: FLOPs, traffic, memory, and how long a named GPU must or may take.

A graph's nodes (`graph`) are counted and put into the kernels an engine would make of them (`work`), and set against a
GPU's peaks (`gpus`, `prediction`). The result is a prediction, not a measurement.
"""
