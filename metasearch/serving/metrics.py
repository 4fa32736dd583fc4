"""What Prometheus is told of a service, in its text format."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from metasearch.bundle.contents import Bundle

CONTENT_TYPE = CONTENT_TYPE_LATEST
LATENCIES_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("metasearch_requests", "Requests answered.", ("path", "status"), registry=own)
        self.seconds = Histogram(
            "metasearch_predict_seconds",
            "From a prediction's request to its answer, but for those that found no room.",
            buckets=LATENCIES_S,
            registry=own,
        )
        self.batches = Histogram("metasearch_batch_size", "Bodies in a batch.", buckets=BATCH_SIZES, registry=own)
        self.waiting = Gauge("metasearch_waiting_requests", "Predictions that are not answered yet.", registry=own)
        self.reloads = Counter("metasearch_reloads", "Bundles asked for by SIGHUP.", ("result",), registry=own)
        self._model = Gauge("metasearch_model_info", "The bundle in service.", ("name", "digest"), registry=own)

    def tell_model(self, bundle: Bundle) -> None:
        """Name the bundle that is in service now."""
        self._model.clear()
        self._model.labels(bundle.name, bundle.digest).set(1)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self._registry)
