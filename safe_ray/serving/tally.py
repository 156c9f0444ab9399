"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Tally:
    """The counts of one process; each has its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "safe_ray_requests", "Requests by route and status.", ["route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "safe_ray_request_seconds", "From a request to its answer.", ["route"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.images = Counter(
            "safe_ray_images", "Images that were classified.", registry=self._registry
        )
        self.batches = Histogram(
            "safe_ray_batch_images", "Images that passed the trunk together, for each request.",
            buckets=_IMAGES, registry=self._registry,
        )  # fmt: skip
        self.retries = Counter(
            "safe_ray_retries", "Requests that were given to a replica again, as one had gone.",
            registry=self._registry,
        )  # fmt: skip
        self.under_way = Gauge(
            "safe_ray_requests_under_way", "Requests without an answer yet.",
            registry=self._registry,
        )  # fmt: skip
        self._replica = {
            name: Gauge(f"safe_ray_{name}", text, ["replica"], registry=self._registry)
            for name, text in {
                "tasks": "Tasks that are served.",
                "heads_in_memory": "Heads that are in memory.",
                "head_loads": "Heads that were read since the replica started.",
                "reloads": "How often heads had moved since the replica started.",
            }.items()
        }

    def text(self, replica: str, of_replica: Mapping[str, float]) -> bytes:
        """Return all counts.

        Args:
            replica: the name of the replica that was asked.
            of_replica: its own counts.
        """
        for name, gauge in self._replica.items():
            gauge.clear()
            if name in of_replica:
                gauge.labels(replica).set(of_replica[name])
        return generate_latest(self._registry)
