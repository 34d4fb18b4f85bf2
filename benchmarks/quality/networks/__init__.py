"""Networks whose outputs the measures compare, loaded at first use and kept.

Access raises :class:`UnavailableError` where one cannot be had: a package or weights are missing, or do not fit.
"""

from __future__ import annotations

from functools import cached_property

from .amt import AmtInterpolator
from .cd_fvd import CdFvd
from .features import ClipNetwork, dino, lite0
from .flow import DisFlow, RaftFlow
from .sources import NetworkSources


class Networks:
    """The networks by what they are."""

    def __init__(self, sources: NetworkSources | None = None) -> None:
        self.sources = sources or NetworkSources()

    clip = cached_property(lambda self: ClipNetwork(self.sources))
    dino = cached_property(lambda self: dino(self.sources))
    lite0 = cached_property(lambda self: lite0(self.sources))
    raft = cached_property(lambda self: RaftFlow(self.sources))
    dis = cached_property(lambda self: DisFlow())
    amt = cached_property(lambda self: AmtInterpolator(self.sources))
    fvd = cached_property(lambda self: CdFvd(self.sources))
