"""One run on a machine with an NVIDIA GPU: tests, parity, the loop with and without graph, bench; one JSON."""
