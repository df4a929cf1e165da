"""The web page: forms to requests and back, sessions, and progress."""

import asyncio
import json
import zipfile

import gradio as gr
import numpy as np
import pytest
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.errors import ConfigError
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.limits import Limits
from ldm_jax.serving.page import build_page
from ldm_jax.serving.page.follow_tickets import follow, progress_html
from ldm_jax.serving.page.form_values import (
  form_of_metadata,
  other_fields,
  request_of_form,
)
from ldm_jax.serving.page.model_inputs import model_inputs
from ldm_jax.serving.page.sessions import Sessions
from ldm_jax.serving.ticket import Cancelled
from ldm_jax.serving.worker import Worker

NAMES = ("prompt", "negative_prompt", "steps", "guidance", "num", "seed")
NAMES += ("sampler", "width", "height", "other")


@pytest.fixture(scope="module")
def pipe(folder):  # noqa: F811
  return Pipeline.from_pretrained(folder)


@pytest.fixture
def worker(pipe):
  made = Worker(pipe, 2, Limits(images=3))
  made.start()
  yield made
  made.stop(drain=False)


@pytest.fixture
def session():
  sessions = Sessions()
  yield sessions.get("a")
  sessions.end("a")


def request(prompt="a cat", **fields):
  return GenerationRequest(
    prompt=prompt, **{"height": 16, "width": 16, "steps": 2, **fields}
  )


def collect(*args, **options):
  async def events():
    return [event async for event in follow(*args, **options)]

  return asyncio.run(events())


def test_empty_fields_take_the_models_defaults():
  values = {"prompt": "a cat", "sampler": "", "width": None, "seed": "7"}
  assert request_of_form(values) == GenerationRequest(prompt="a cat", seed=7)


def test_other_settings_replace_those_of_the_form():
  values = {"steps": 20, "other": '{"times": [900, 500], "eta": 1.0}'}
  expected = GenerationRequest(steps=20, times=(900, 500), eta=1.0)
  assert request_of_form(values) == expected


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "JSON is malformed"),
    ('{"stepz": 3}', "no field 'stepz'"),
    ('{"image": "/etc/passwd"}', "image cannot be given there"),
    ('{"controlnet": "folder"}', "controlnet cannot be given there"),
    ('{"layout": "/etc/passwd"}', "layout"),
    ('{"output": "latents"}', "output cannot be given there"),
    ('{"eta": "much"}', "eta"),
    ('{"replay": {"row": 1}}', "replay"),
  ],
)
def test_other_settings_are_checked(text, message):
  with pytest.raises(ConfigError, match=message):
    other_fields(text)


def test_a_seed_is_a_whole_number_of_64_bits():
  assert request_of_form({"seed": str(2**64 - 1)}).seed == 2**64 - 1
  with pytest.raises(ConfigError, match="seed must be a whole number"):
    request_of_form({"seed": "1.5"})


@pytest.mark.parametrize(
  "fields",
  [
    {"num": 3, "negative_prompt": "a dog", "seed": 2**63 + 1},
    {"num": 2, "sampler": "DPM++ 2M Karras", "eta": 0.0, "guidance": 2.0},
    {"num": 3, "variation": 0.3, "guidance_interval": (0.2, 0.8)},
    {"prompt": ("a cat", "a dog"), "interpolate": 3},
    {"num": 2, "rng": "torch"},
  ],
  ids=lambda fields: next(reversed(fields)),
)
def test_an_images_settings_make_it_again(worker, fields):
  """Bit for bit, through a form that has a few of the fields."""
  ticket = worker.submit(request(**fields))
  images = ticket.wait(300)
  values = form_of_metadata(json.loads(json.dumps(ticket.metadata[-1])), NAMES)
  (again,) = worker.submit(request_of_form(values)).wait(300)
  np.testing.assert_array_equal(again, images[-1])


def test_requests_are_submitted_as_many_at_a_time_as_may_be(worker, session):
  requests = [request(seed=seed, num=2) for seed in range(3)]
  events = collect(worker, session, "grid", "a", requests)
  last = events[-1]
  assert last.progress is None and last.count == 6
  assert [len(ticket.images) for ticket in last.ended] == [2, 2, 2]
  assert "<progress" in progress_html(events[0]) and not progress_html(last)
  assert not session.tickets


def test_cancelling_ends_what_a_tab_has_asked_for(worker, session):
  async def cancel_soon():
    async for _ in follow(worker, session, "text", "a", [request(steps=900)]):
      session.cancel("text")

  worker.limits = Limits(steps=1000)
  with pytest.raises(Cancelled):
    asyncio.run(cancel_soon())
  assert not session.tickets and worker.running == 0


def test_a_client_that_is_gone_frees_its_slots(worker, session):
  async def leave():
    events = follow(worker, session, "text", "a", [request(steps=150)])
    await anext(events)
    await events.aclose()

  asyncio.run(leave())
  worker.submit(request()).wait(300)
  assert worker.statistics.tickets["cancelled"] == 1


def test_a_session_keeps_images_with_their_settings(worker, session, tmp_path):
  ticket = worker.submit(request(num=2, seed=3))
  for image, metadata in zip(ticket.wait(300), ticket.metadata, strict=True):
    session.add(image, metadata)
  again = worker.pipeline.request_of(session.images[1])
  assert again.seed == 3 and again.index == 1
  with zipfile.ZipFile(session.write_zip()) as file:
    lines = file.read("settings.jsonl").decode().splitlines()
    assert file.namelist() == ["00000.png", "00001.png", "settings.jsonl"]
  assert [json.loads(line)["index"] for line in lines] == [0, 1]


def test_the_page_shows_what_the_model_reads(worker):
  inputs = model_inputs(worker.pipeline.loaded)
  assert inputs.prompt and inputs.starts_from_noise and not inputs.classes
  assert inputs.subject == "Text"
  blocks = build_page(worker)
  labels = {getattr(part, "label", None) for part in blocks.blocks.values()}
  assert {"Prompt", "Negative prompt", "Text to image", "PNG info"} <= labels
  assert not {"Class", "Layout (JSON)"} & labels
  assert isinstance(blocks, gr.Blocks)
