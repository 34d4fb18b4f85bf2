"""One run on a machine with an NVIDIA GPU: the tests marked ``gpu``, ``consisti2v bench`` and the attention kernel."""
