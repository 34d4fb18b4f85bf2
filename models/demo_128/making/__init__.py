"""Makes the demo model from nothing: `python -m consisti2v_rt.models.demo_128.making make`."""
