"""Engines ahead of time: a bundle's ONNX graphs become TensorRT plans for named GPUs, with no GPU at hand.

Read in this order: ``targets`` and ``libraries`` (what can be asked for), ``shapes`` (profiles), ``job`` (one call's
settled arguments), ``attention`` (what must fuse), ``plan`` (one graph becomes one plan), ``process`` (in a process of
its own), ``bundle_engines`` (all of them, put into the bundle at once).
"""
