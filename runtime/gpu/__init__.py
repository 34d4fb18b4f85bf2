"""The GPU path: sessions, memory and the denoising loop on one NVIDIA GPU, through cuda.core alone (no torch).

Read in this order: ``device`` (everything that touches the driver), ``memory``, ``device_session`` and the two sessions
behind it, ``denoise`` (the loop), ``step_graph``, ``vae_decode``. GPU packages are imported inside functions.
"""
