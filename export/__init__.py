"""Torch side: checkpoint -> ONNX -> bundle. The only folder that imports torch (the `[export]` extra)."""
