"""What each preset and each way of fewer or cheaper steps saves and loses, against the published settings.

The command is :func:`consisti2v_rt.benchmarks.preset_quality.command.quality`.
"""
