"""Nodes for ComfyUI (V3 schema). ComfyUI finds them through ``comfy_entrypoint`` of the repository's root."""
