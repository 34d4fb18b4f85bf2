"""``consisti2v bench``: how long a bundle takes, stage by stage and beside the published formulation.

Everything that is timed runs in a child process of its own (`worker`, `worker_process`), which alone loads torch or a
session: memory is then that of the thing measured, a row that fails takes nothing with it, and Ctrl-C ends them all.
`subjects` are what a child can run; `latency`, `side_by_side` and `scaling` send them to work in turns; a `record` is
what they leave, and `tables`, `plots`, `report` and `compare` read it.
"""
