"""What a caller asks for: options, their checks and defaults."""
