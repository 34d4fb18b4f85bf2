"""How a half-precision graph calls a weight that holds the scale of an attention: its name, this, and the factor."""

SCALED = "_scaled_"
