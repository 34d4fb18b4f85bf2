"""Measures of a video: the report's six, motion smoothness, and fidelity of one video to another.

Every number says which network made it. A network that cannot be had leaves its measure ``unavailable``; the variants
that need no download have names of their own (``..._dis``, ``..._lite0``) and are never given for the standard ones.
"""
