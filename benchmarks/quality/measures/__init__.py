"""The measures: one file each; `registry` lists them."""
