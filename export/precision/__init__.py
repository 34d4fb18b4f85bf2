"""A bundle's float32 graphs in other precisions, at the level of ONNX: no torch, no checkpoint.

Read in this order: ``recipe`` (what the precisions are, and whether a graph is current; needs no onnx), ``graph`` and
``weights``, ``attention``, ``lowering``, ``quantisation`` (the changes), ``conversion`` (all of them), ``simulation``,
``cases``, ``validation`` (how far it strays), ``calibration`` (ranges of activations), ``variant`` (into the bundle).
"""
