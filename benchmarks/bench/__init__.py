"""``consisti2v bench``: how long a bundle takes, stage by stage and beside the published formulation.

Everything that is timed (`targets`) runs in a child process of its own (`worker`), which alone loads torch or a
session: memory is then that of the thing measured, a row that fails takes nothing with it, and Ctrl-C ends them all.
`candidates` are what can be measured, and their turns; `measure` sends them; a `record` is what they leave, and
`tables`, `report` and `compare` read it.
"""
