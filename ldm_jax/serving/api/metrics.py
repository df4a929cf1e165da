"""/metrics for Prometheus and /healthz."""

from collections.abc import Iterable

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
  CounterMetricFamily,
  GaugeMetricFamily,
  Metric,
  SummaryMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ldm_jax.runtime.devices import memory
from ldm_jax.serving.worker import Worker

QUANTILES = (0.5, 0.95, 0.99)


class WorkerCollector:
  """Reads the worker's counts when Prometheus asks."""

  def __init__(self, worker: Worker):
    self._worker = worker

  def collect(self) -> Iterable[Metric]:
    """The metrics of this moment."""
    worker, counts = self._worker, self._worker.statistics
    tickets = CounterMetricFamily(
      "ldm_jax_requests", "Requests that ended, by state.", labels=["state"]
    )
    for state in ("done", "cancelled", "failed"):
      tickets.add_metric([state], counts.tickets[state])
    yield tickets
    yield CounterMetricFamily(
      "ldm_jax_images", "Finished images.", counts.images
    )
    yield CounterMetricFamily(
      "ldm_jax_steps", "Network evaluations of one image.", counts.rows
    )
    for name, text, value in (
      ("waiting", "Images that wait for a slot.", worker.waiting),
      ("running", "Images in slots.", worker.running),
      (
        "step_seconds",
        "Moving average of a step of all slots.",
        counts.row_seconds,
      ),
    ):
      yield GaugeMetricFamily(f"ldm_jax_{name}", text, value)
    yield from _latencies(sorted(counts.latencies))
    free = memory.available_bytes()
    if free is not None:
      yield GaugeMetricFamily(
        "ldm_jax_device_memory_free_bytes", "Free memory of a device.", free
      )


def _latencies(values: list[float]) -> Iterable[Metric]:
  """Quantiles of the last requests, from submission to end."""
  yield SummaryMetricFamily(
    "ldm_jax_latency_seconds",
    "From submission to end, the last requests.",
    count_value=len(values),
    sum_value=sum(values),
  )
  gauge = GaugeMetricFamily(
    "ldm_jax_latency_quantile_seconds",
    "From submission to end, the last requests.",
    labels=["quantile"],
  )
  for quantile in QUANTILES if values else ():
    place = min(len(values) - 1, int(quantile * len(values)))
    gauge.add_metric([str(quantile)], values[place])
  yield gauge


def routes(worker: Worker) -> APIRouter:
  """GET /metrics and /healthz."""
  router = APIRouter(tags=["monitoring"])
  registry = CollectorRegistry()
  registry.register(WorkerCollector(worker))

  @router.get("/metrics")
  def metrics() -> Response:
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

  @router.get("/healthz")
  async def healthz(response: Response) -> dict[str, str]:
    if worker.is_draining:
      response.status_code = 503
      return {"status": "draining"}
    return {"status": "ok"}

  return router
