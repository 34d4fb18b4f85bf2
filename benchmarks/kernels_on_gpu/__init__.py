"""Our CUDA kernels on a GPU, each against plain torch."""
