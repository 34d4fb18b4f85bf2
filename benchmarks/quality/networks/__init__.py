"""Networks whose outputs the measures compare: one file each, loaded at first use."""
