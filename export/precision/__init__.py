"""A bundle's float32 graphs in other precisions, at the level of ONNX: no torch, no checkpoint."""

from .recipe import PRECISIONS, Recipe
from .variant import StageVariant, VariantOptions, write_variant

__all__ = ["PRECISIONS", "Recipe", "StageVariant", "VariantOptions", "write_variant"]
