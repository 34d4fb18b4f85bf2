"""``/metrics``: figures of operation in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800, 3600)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.queue_length = Gauge("consisti2v_queue_length", "Jobs that wait.", registry=registry)
        self.queue_capacity = Gauge("consisti2v_queue_capacity", "Most jobs that may wait.", registry=registry)
        self.running = Gauge("consisti2v_jobs_running", "Jobs that run.", registry=registry)
        self.in_queue = Histogram(
            "consisti2v_time_in_queue_seconds", "From arrival to start.", buckets=_SECONDS, registry=registry
        )
        self.step = Histogram("consisti2v_step_seconds", "Of a denoising step.", buckets=_SECONDS, registry=registry)
        self.stage = Histogram(
            "consisti2v_stage_seconds", "Of a stage of a run.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.videos = Counter("consisti2v_videos", "Videos made.", registry=registry)
        self.failures = Counter("consisti2v_failures", "Jobs that failed.", ["cause"], registry=registry)
        self.cancelled = Counter("consisti2v_cancelled", "Jobs that were cancelled.", registry=registry)
        self.refused = Counter("consisti2v_queue_refusals", "Requests that found a full queue.", registry=registry)
        self.worker_starts = Counter("consisti2v_worker_starts", "Worker processes started.", registry=registry)
        self.worker_memory = Gauge(
            "consisti2v_worker_memory_bytes", "Resident memory of a worker.", ["worker"], registry=registry
        )
        self.requests = Counter("consisti2v_http_requests", "Requests.", ["method", "status"], registry=registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
