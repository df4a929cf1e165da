"""The worker: many clients, one model, and each image as it is alone."""

import threading

import numpy as np
import pytest
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.errors import ConfigError
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.preview_decoder import PreviewDecoder
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.fair_queue import FairQueue
from ldm_jax.serving.limits import Draining, Limits, QueueFull
from ldm_jax.serving.ticket import Cancelled
from ldm_jax.serving.worker import Worker

SLOTS = 3


def request(prompt="a cat", **fields):
  return GenerationRequest(
    prompt=prompt, **{"height": 16, "width": 16, "steps": 3, **fields}
  )


@pytest.fixture(scope="module")
def pipe(folder):  # noqa: F811
  return Pipeline.from_pretrained(folder)


@pytest.fixture
def worker(pipe):
  made = Worker(pipe, SLOTS, Limits(queue=40, images=8, steps=50))
  made.start()
  yield made
  made.stop(drain=False)


def test_clients_take_turns():
  queue = FairQueue()
  for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
    queue.push(item[0], item)
  assert queue.before(lambda item: item == "b2") == 4
  assert queue.before(lambda item: item == "a3") == 5
  taken = [queue.pop() for _ in range(len(queue))]
  assert taken == ["a1", "b1", "c1", "a2", "b2", "a3"]
  with pytest.raises(IndexError):
    queue.pop()


def test_what_is_removed_is_not_taken():
  queue = FairQueue()
  for item in ("a1", "b1", "a2"):
    queue.push(item[0], item)
  queue.remove(lambda item: item.startswith("a"))
  assert len(queue) == 1 and queue.pop() == "b1"


def test_images_of_many_clients_are_what_they_are_alone(worker):
  """Other seeds, samplers and lengths, submitted by threads at once."""
  requests = [
    request(
      f"a {('cat', 'dog')[i % 2]}",
      seed=i,
      steps=2 + i % 3,
      sampler=("ddim", "Euler a", "DPM++ 2M")[i % 3],
      num=1 + i % 2,
    )
    for i in range(8)
  ]
  found = [None] * len(requests)

  def ask(i):
    found[i] = worker.submit(requests[i], f"client {i}").wait(300)

  threads = [threading.Thread(target=ask, args=[i]) for i in range(8)]
  [thread.start() for thread in threads]
  [thread.join() for thread in threads]
  for each, images in zip(requests, found, strict=True):
    alone = worker.submit(each).wait(300)
    np.testing.assert_array_equal(images, alone)
  assert worker.waiting == worker.running == 0
  assert worker.statistics.tickets["done"] == 16


def test_a_short_request_does_not_wait_for_a_long_one(worker):
  long = worker.submit(request(num=8, steps=20), "a")
  short = worker.submit(request(steps=2), "b")
  short.wait(300)
  assert not long.has_ended
  long.cancel()


def test_cancelling_frees_the_slots(worker):
  tickets = [worker.submit(request(num=8, steps=50), str(i)) for i in range(3)]
  for ticket in tickets:
    ticket.cancel()
    with pytest.raises(Cancelled):
      ticket.wait(300)
  assert worker.waiting == worker.running == 0
  worker.submit(request()).wait(300)


def test_progress_counts_steps_and_shows_x0(worker):
  ticket = worker.submit(request(num=2, steps=4), has_preview=True)
  ticket.wait(300)
  progress = worker.progress(ticket)
  assert progress.state == "done" and progress.images == progress.count == 2
  assert progress.step == progress.steps == 8 and progress.fraction == 1
  assert progress.eta == 0 and progress.ahead == 0
  assert progress.preview.shape == (8, 8, 3)


def test_a_film_is_what_the_pipeline_previews(worker):
  wanted = request(num=2, steps=4, sampler="ddim")
  ticket = worker.submit(wanted, has_film=True)
  ticket.wait(300)
  shown = []
  see = lambda done, total, preview: shown.append(preview)
  worker.pipeline(wanted, callback=see, preview=True)
  films = np.stack([ticket.film_images(0), ticket.film_images(1)], axis=1)
  np.testing.assert_allclose(films, np.int16(shown)[:, :2], atol=1)


def test_previews_by_a_decoder_of_the_models_latents(pipe):
  """Its own first stage as the decoder shows what the film and the pipeline
  do."""
  stage, params = pipe.loaded.model.first_stage, pipe.loaded.params
  decoder = PreviewDecoder(
    stage, params.first_stage, float(params.latent_scale)
  )
  wanted = request(num=2, steps=2, sampler="ddim")
  worker = Worker(pipe, 2, preview_decoder=decoder)
  worker.start()
  ticket = worker.submit(wanted, has_preview=True, has_film=True)
  ticket.wait(300)
  worker.stop()
  preview = np.int16(worker.progress(ticket).preview)
  films = np.int16([ticket.film_images(0), ticket.film_images(1)])
  assert preview.shape == (16, 16, 3)
  assert np.abs(films - preview).max((2, 3, 4)).min() <= 1
  shown = []
  see = lambda done, total, preview: shown.append(preview)
  pipe(wanted, callback=see, preview=decoder)
  np.testing.assert_allclose(
    films.swapaxes(0, 1), np.int16(shown)[:, :2], atol=1
  )


def test_a_decoder_of_other_latents_is_refused(pipe):
  stage = TinyAutoencoder(8, 16)
  decoder = PreviewDecoder(stage, {}, path="tiny")
  match = r"'tiny' reads latents of 16 channels and stride 8, the model has 4"
  with pytest.raises(ConfigError, match=match):
    Worker(pipe, 1, preview_decoder=decoder)
  with pytest.raises(ConfigError, match=match):
    pipe(request(), callback=print, preview=decoder)


def test_a_request_that_cannot_be_fulfilled_is_refused_at_once(worker):
  with pytest.raises(ConfigError, match="steps must be at most 50"):
    worker.submit(request(steps=51))
  with pytest.raises(ConfigError, match="at most 8 images"):
    worker.submit(request(num=9))
  with pytest.raises(ConfigError, match="at most 8 images"):
    worker.submit(request(("a", "b"), num=10**6))
  with pytest.raises(ConfigError, match="pixels"):
    worker.submit(request(height=4096, width=4096))
  with pytest.raises(ConfigError, match="class_label"):
    worker.submit(request(class_label=3))
  for _ in range(5):
    worker.submit(request(num=8, steps=50), "a")
  with pytest.raises(QueueFull, match="40 may"):
    worker.submit(request(num=8), "b")


def test_what_fails_ends_its_own_ticket_alone(worker, monkeypatch):
  from ldm_jax.sampling.slots import SlotJob

  decoded = SlotJob.decoded

  def broken(job, decoding):
    if job.config.seed == 13:
      raise ZeroDivisionError("a fault")
    return decoded(job, decoding)

  monkeypatch.setattr(SlotJob, "decoded", broken)
  good, bad = (worker.submit(request(seed=seed)) for seed in (1, 13))
  with pytest.raises(ZeroDivisionError):
    bad.wait(300)
  assert len(good.wait(300)) == 1
  assert len(worker.submit(request(seed=2)).wait(300)) == 1


def test_inversion_runs_between_the_others(worker):
  image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  others = worker.submit(request(num=4, steps=5))
  inverted = worker.submit(
    request("", image=image, invert=True, output="latents", guidance=1.0)
  )
  (noise,) = inverted.wait(300)
  expected = worker.pipeline(
    request("", image=image, invert=True, output="latents", guidance=1.0)
  )
  np.testing.assert_array_equal(noise, expected.images[0])
  assert len(others.wait(300)) == 4


def test_a_draining_worker_finishes_and_takes_nothing_new(pipe):
  worker = Worker(pipe, SLOTS)
  worker.start()
  ticket = worker.submit(request(num=4))
  worker.stop()
  assert len(ticket.result()) == 4
  with pytest.raises(Draining):
    worker.submit(request())


def test_a_stopping_worker_cancels(pipe):
  worker = Worker(pipe, SLOTS)
  worker.start()
  ticket = worker.submit(request(num=8, steps=150), "a")
  worker.stop(drain=False)
  with pytest.raises(Cancelled):
    ticket.result()
