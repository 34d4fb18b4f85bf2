"""Torch-free runtime: bundle -> sessions -> denoising loop -> frames -> file."""
