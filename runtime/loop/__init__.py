"""The denoising loop on the processor, its batches of guidance branches, and its random numbers."""
