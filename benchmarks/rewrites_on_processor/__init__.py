"""What each rewrite of the OpenVINO session gains by itself, at the full model's sizes."""
