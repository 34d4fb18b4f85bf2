"""Batch generation: a listing of photos becomes a folder of videos with a results file."""
