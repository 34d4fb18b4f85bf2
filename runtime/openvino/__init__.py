"""OpenVINO on the processor: a backend, its session, and exact rewrites of a loaded graph that make it cheaper."""
