"""The demo model's checkpoint."""
