"""Prometheus metrics, in a registry of their own: two apps in one process do not share counters.

Labels are bounded: routes by template, status by class, models and providers by what is configured or loaded. A label never
holds a caller's words: `bounded` folds whatever passes the cap into ``other``.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector

from app.core.types import EngineState

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_MAX_CONFIGURED = 50
_MAX_OTHERS = 16


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """Series of one model, looked up once: a look-up costs more than the counting."""

    answered: Counter
    attempted: Counter
    queue_seconds: Histogram
    queue_length: Gauge
    running: Gauge
    first_token_seconds: Histogram
    prediction_seconds: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter


class Metrics:
    """All metrics of one service. Names are documented in ``doc/operations.md``; a test compares."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._models: set[str] = set()
        self._configured = 0
        self._of_model: dict[str, ModelMetrics] = {}
        r = self.registry
        self.requests = Counter("aprendiz_http_requests", "HTTP requests.", ("route", "method", "status"), registry=r)
        self.request_seconds = Histogram(
            "aprendiz_http_request_seconds", "From request to last byte.", ("route",), registry=r, buckets=_SECONDS
        )
        self.open_requests = 0
        """HTTP requests now being answered: a plain number, since it changes twice with each of them."""
        self.in_flight = Gauge("aprendiz_http_requests_in_flight", "HTTP requests now being answered.", registry=r)
        self.in_flight.set_function(lambda: self.open_requests)
        self.predictions = Counter("aprendiz_predictions", "Predictions.", ("model", "status"), registry=r)
        self.first_token_seconds = Histogram(
            "aprendiz_time_to_first_token_seconds",
            "From the call to the first piece.",
            ("model",),
            registry=r,
            buckets=_SECONDS,
        )
        self.prediction_seconds = Histogram(
            "aprendiz_prediction_seconds", "From the call to the stored end.", ("model",), registry=r, buckets=_SECONDS
        )
        self.tokens = Counter("aprendiz_tokens", "Tokens.", ("model", "kind"), registry=r)
        self.queue_length = Gauge("aprendiz_queue_length", "Requests that wait for a slot.", ("model",), registry=r)
        self.queue_seconds = Histogram("aprendiz_queue_seconds", "Wait for a slot.", ("model",), registry=r, buckets=_SECONDS)
        self.running = Gauge("aprendiz_running_predictions", "Predictions that hold a slot.", ("model",), registry=r)
        self.rejected = Counter("aprendiz_rejected", "Requests refused before work.", ("reason",), registry=r)
        self.engine_state = Gauge("aprendiz_engine_state", "1 for the state that holds.", ("model", "state"), registry=r)
        self.engine_restarts = Counter(
            "aprendiz_engine_restarts", "Engine processes that died and were restarted.", ("model",), registry=r
        )
        self.engine_load_seconds = Histogram(
            "aprendiz_engine_load_seconds", "From start of an engine to ready.", ("model",), registry=r, buckets=_SECONDS
        )
        self.attempts = Counter("aprendiz_attempts", "Targets asked for an answer.", ("model", "outcome"), registry=r)
        self.fallbacks = Counter(
            "aprendiz_fallbacks", "Targets given up for another before they answered.", ("from", "reason"), registry=r
        )
        self.breaker_state = Gauge(
            "aprendiz_breaker_state", "0 closed, 1 half open, 2 open or cooling down.", ("model",), registry=r
        )
        self.cache = Counter("aprendiz_cache", "Calls by what the response cache had for them.", ("result",), registry=r)
        self.cache_bytes = Gauge("aprendiz_cache_bytes", "Memory of kept answers.", registry=r)
        self.feedback = Counter("aprendiz_feedback", "Feedback stored.", ("kind",), registry=r)
        self.promotions = Counter("aprendiz_promotions", "Promotions, and what became of them.", ("outcome",), registry=r)
        self.canary_share = Gauge("aprendiz_canary_share", "Share of the sessions that a canary answers.", registry=r)
        self.runs = Gauge("aprendiz_runs", "Training runs that have not ended.", ("state",), registry=r)
        self.runs_ended = Counter("aprendiz_runs_ended", "Training runs that have ended.", ("state",), registry=r)
        self.run_restarts = Counter("aprendiz_run_restarts", "Training processes that died and were started again.", registry=r)
        self.run_paused_seconds = Counter(
            "aprendiz_run_paused_seconds", "Time that training processes stood still for serving.", registry=r
        )
        self.documents_waiting = Gauge("aprendiz_documents_waiting", "Documents that wait, or are being indexed.", registry=r)
        self.documents_indexed = Counter(
            "aprendiz_documents_indexed", "Documents whose indexing has ended.", ("state",), registry=r
        )
        self.document_chunks = Counter("aprendiz_documents_chunks", "Chunks made of documents.", registry=r)
        self.document_seconds = Counter("aprendiz_documents_seconds", "Time spent on indexing documents.", registry=r)
        self.logins = Counter("aprendiz_logins", "Login attempts.", ("result",), registry=r)
        self.db_commit_seconds = Histogram(
            "aprendiz_db_commit_seconds", "Group commits of the writer.", registry=r, buckets=_SECONDS
        )
        self.db_batch_rows = Histogram(
            "aprendiz_db_commit_tasks", "Writes per group commit.", registry=r, buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
        )

    def model_label(self, name: str, *, configured: bool = False) -> str:
        """``name`` as a label value; ``other`` past the first fifty names of the configuration and sixteen more.

        Each name brings about a hundred series, and callers may make names up where an upstream exposes all of its models.
        """
        if name in self._models:
            return name
        if len(self._models) >= (_MAX_CONFIGURED if configured else min(self._configured, _MAX_CONFIGURED) + _MAX_OTHERS):
            return "other"
        self._configured += configured
        self._models.add(name)
        return name

    def of_model(self, label: str) -> ModelMetrics:
        """The series of one model that every prediction touches; ``label`` as `model_label` gave it."""
        found = self._of_model.get(label)
        if found is None:
            found = self._of_model[label] = ModelMetrics(
                answered=self.predictions.labels(label, "ok"),
                attempted=self.attempts.labels(label, "ok"),
                queue_seconds=self.queue_seconds.labels(label),
                queue_length=self.queue_length.labels(label),
                running=self.running.labels(label),
                first_token_seconds=self.first_token_seconds.labels(label),
                prediction_seconds=self.prediction_seconds.labels(label),
                prompt_tokens=self.tokens.labels(label, "prompt"),
                completion_tokens=self.tokens.labels(label, "completion"),
            )
        return found

    def set_engine_state(self, model: str, state: EngineState) -> None:
        """Sets the state of a model's engine: one label of the six is 1."""
        label = self.model_label(model)
        for each in EngineState:
            self.engine_state.labels(label, each.value).set(1 if each is state else 0)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)
