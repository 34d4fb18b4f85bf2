"""A bundle's float32 graphs in other precisions, at the level of ONNX: no torch, no checkpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .currency import VariantOptions
from .recipe import PRECISIONS, Recipe

if TYPE_CHECKING:
    from .variant import StageVariant, write_variant

__all__ = ["PRECISIONS", "Recipe", "StageVariant", "VariantOptions", "write_variant"]


def __getattr__(name: str) -> Any:
    # Writing needs onnx; that all is written already is seen without.
    if name in ("StageVariant", "write_variant"):
        return getattr(importlib.import_module(".variant", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
