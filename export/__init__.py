"""Checkpoint -> ONNX -> bundle, with torch (the `[export]` extra); engines and precisions need no torch."""
