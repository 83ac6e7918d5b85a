"""What is counted and timed, for Prometheus; TEI's names stand beside ours.

TEI's: te_queue_size, te_batch_next_size, te_batch_next_tokens, te_request_{count, success, failure,
duration, queue_duration, inference_duration, tokenization_duration, input_length}.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from embedlm.encode.prefix_cache import Counts
from embedlm.serving.batcher import Batch

__all__ = ["Metrics", "Spent"]

_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_ALIASES = {
    "embedlm_queue_requests": "te_queue_size",
    "embedlm_batch_texts": "te_batch_next_size",
    "embedlm_batch_tokens": "te_batch_next_tokens",
    "embedlm_request_seconds": "te_request_duration",
    "embedlm_request_queue_seconds": "te_request_queue_duration",
    "embedlm_request_run_seconds": "te_request_inference_duration",
    "embedlm_request_tokenize_seconds": "te_request_tokenization_duration",
    "embedlm_text_tokens": "te_request_input_length",
}


@dataclass(slots=True)
class Spent:
    """Where a request's time went, and what it held."""

    model: str = ""
    texts: int = 0
    tokens: int = 0
    tokenize: float = 0.0
    queue: float = 0.0
    run: float = 0.0


class Metrics:
    """The counters of one server."""

    def __init__(
        self,
        waiting: Callable[[], tuple[int, int]],
        prefixes: Callable[[], Mapping[str, Counts]] = dict,
        workers: Callable[[], int] = int,
    ) -> None:
        """Make them.

        Args:
            waiting: tells how many requests and tokens wait.
            prefixes: tells what the cache of prefixes has done, by model.
            workers: tells how many processes run models beside the server's own.
        """
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, words, labels, buckets=buckets, registry=registry)

        self._requests = Counter(
            "embedlm_requests",
            "Requests by route and status.",
            ["route", "status"],
            registry=registry,
        )
        self._tokens = Counter("embedlm_tokens", "Tokens of texts.", ["model"], registry=registry)
        whole = "Seconds from a request's arrival to its answer."
        self._whole = histogram("embedlm_request_seconds", whole, _SECONDS)
        self._queue = histogram("embedlm_request_queue_seconds", "Seconds in the queue.", _SECONDS)
        self._run = histogram("embedlm_request_run_seconds", "Seconds in the model.", _SECONDS)
        words = "Seconds in the tokenizer."
        self._tokenize = histogram("embedlm_request_tokenize_seconds", words, _SECONDS)
        self._length = histogram("embedlm_text_tokens", "Tokens of a text.", _TOKENS)
        self._batch_texts = histogram("embedlm_batch_texts", "Texts of a batch.", _COUNTS)
        self._batch_tokens = histogram("embedlm_batch_tokens", "Tokens of a batch.", _TOKENS)
        requests = Gauge("embedlm_queue_requests", "Requests that wait.", registry=registry)
        requests.set_function(lambda: waiting()[0])
        tokens = Gauge("embedlm_queue_tokens", "Tokens that wait.", registry=registry)
        tokens.set_function(lambda: waiting()[1])
        words = "Processes that run models; fewer than at the start: some have been killed."
        Gauge("embedlm_workers", words, registry=registry).set_function(workers)
        self._answers = lru_cache(256)(self._requests.labels)
        self._tokens_of = lru_cache(256)(self._tokens.labels)
        self._answered = {True: 0, False: 0}
        registry.register(_Prefixes(prefixes))

    def batch(self, batch: Batch) -> None:
        """Count a batch."""
        self._batch_texts.observe(batch.items)
        self._batch_tokens.observe(batch.tokens)

    def lengths(self, tokens: list[int]) -> None:
        """Count the texts of a request."""
        for one in tokens:
            self._length.observe(one)

    def request(self, route: str, status: int, seconds: float, spent: Spent) -> None:
        """Count an answer."""
        self._answers(route, status).inc()
        self._answered[status < 400] += 1
        self._whole.observe(seconds)
        if spent.texts:
            self._tokens_of(spent.model).inc(spent.tokens)
            self._queue.observe(spent.queue)
            self._run.observe(spent.run)
            self._tokenize.observe(spent.tokenize)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        own: bytes = generate_latest(self._registry)
        aliases: bytes = generate_latest(_Aliases(self))
        return own + aliases

    def tei(self) -> Iterator[Any]:
        """Yield the metrics under TEI's names."""
        for metric in self._registry.collect():
            name = _ALIASES.get(metric.name)
            if name is None:
                continue
            alias = Metric(name, f"TEI's name of {metric.name}.", metric.type)
            for sample in metric.samples:
                alias.add_sample(
                    name + sample.name.removeprefix(metric.name), sample.labels, sample.value
                )
            yield alias
        good, bad = self._answered[True], self._answered[False]
        for name, value in (("count", good + bad), ("success", good), ("failure", bad)):
            metric = Metric(f"te_request_{name}", "TEI's name of embedlm_requests.", "unknown")
            metric.add_sample(f"te_request_{name}", {}, value)
            yield metric


class _Aliases:
    """What Prometheus' client asks for metrics, in place of a registry."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Any]:
        return self._metrics.tei()


class _Prefixes:
    """What the caches of prefixes have done, as metrics."""

    def __init__(self, counts: Callable[[], Mapping[str, Counts]]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Any]:
        """Yield them."""
        families: dict[str, Any] = {
            "lookups": CounterMetricFamily(
                "embedlm_prefix_lookups", "Calls that might share a prefix.", labels=["model"]
            ),
            "hits": CounterMetricFamily(
                "embedlm_prefix_hits", "Calls whose prefix was kept.", labels=["model"]
            ),
            "tokens": CounterMetricFamily(
                "embedlm_prefix_tokens",
                "Tokens that were not run: a kept prefix's, once a call.",
                labels=["model"],
            ),
            "bytes": GaugeMetricFamily(
                "embedlm_prefix_bytes", "Bytes of kept prefixes.", labels=["model"]
            ),
        }
        for model, counts in self._counts().items():
            for name, family in families.items():
                family.add_metric([model], getattr(counts, name))
        yield from families.values()
