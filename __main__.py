"""``python -m consisti2v_rt``: the same as the command ``consisti2v``."""

from .entry import main

main()
