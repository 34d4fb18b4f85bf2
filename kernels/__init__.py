"""Torch-free operations of the loop, each a plain NumPy reference (and, on a GPU, a CUDA kernel beside it)."""
