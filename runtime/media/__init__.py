"""Photos, listings and videos: read, fitted, written."""
