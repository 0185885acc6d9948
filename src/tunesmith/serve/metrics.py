"""Metrics for Prometheus. Their names and labels are listed in docs/serving.md."""

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tunesmith.serve.work import Stats

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

# {metric: (field of Stats, description)}
_OF_WORKERS = {
    "answers_running": ("running", "Answers that are being generated."),
    "answers_waiting": ("waiting", "Answers that wait for a slot."),
    "prompt_tokens": ("prompt_tokens", "Tokens of prompts."),
    "new_tokens": ("new_tokens", "Generated tokens."),
    "known_prompt_tokens": ("prefix_hit_tokens", "Tokens of prompts whose beginning was in the cache."),
}


class Metrics:
    """The metrics of one server, in a separate registry, so that two servers of a process do not mix."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the time at which each metric was made, which doubles their number
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tunesmith_requests", "Requests, by route and status.", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "tunesmith_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.running = Gauge("tunesmith_requests_running", "Requests without a response.", registry=self._registry)
        self.disconnects = Counter(
            "tunesmith_disconnects", "Clients that disconnected before the end.", registry=self._registry
        )
        self.first_token = Histogram(
            "tunesmith_first_token_seconds", "Time from a request to the first token of its answer.", ["model"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.swaps = Counter(
            "tunesmith_version_swaps", "Versions that replaced another one while serving.", registry=self._registry
        )
        self.failed_swaps = Counter(
            "tunesmith_version_swap_failures", "New versions that could not be loaded.", registry=self._registry
        )

    def watch(self, stats: Callable[[], Iterable[Stats]]) -> None:
        """Add metrics of the workers, whose values are read when the metrics are.

        Args:
            stats: returns the state of every worker.
        """
        for name, (field, description) in _OF_WORKERS.items():
            gauge = Gauge(f"tunesmith_{name}", description, registry=self._registry)
            gauge.set_function(partial(_sum, stats, field))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def _sum(stats: Callable[[], Iterable[Stats]], field: str) -> float:
    return float(sum(getattr(each, field) for each in stats()))
