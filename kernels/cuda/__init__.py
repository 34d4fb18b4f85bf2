"""CUDA C++ kernels: sources, their signatures as data, compilation to cubins, and launching."""
