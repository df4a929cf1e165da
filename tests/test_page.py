"""The web page: forms to requests and back, sessions, and progress."""

import asyncio
import dataclasses
import json
import zipfile

import gradio as gr
import numpy as np
import pytest
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.conditioners.spatial import MaskedImage
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.limits import Limits
from ldm_jax.serving.page import (
  build_page,
  controlnet,
  image_to_image,
  inpainting,
  text_to_image,
  upscale,
)
from ldm_jax.serving.page.comparison_grid import grid_of_form
from ldm_jax.serving.page.follow_tickets import follow, progress_html
from ldm_jax.serving.page.form_values import (
  form_for_image,
  form_of_metadata,
  other_fields,
  request_of_form,
)
from ldm_jax.serving.page.inpainting import inpainting_request
from ldm_jax.serving.page.model_inputs import model_inputs
from ldm_jax.serving.page.run_panel import PageContext
from ldm_jax.serving.page.sessions import Sessions
from ldm_jax.serving.page.variations import variation_request
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


def test_labels_of_tabs_depend_on_the_model(worker):
  loaded = worker.pipeline.loaded
  conditioners = (ClassEmbedder(10, 32), MaskedImage())
  other = dataclasses.replace(loaded.model, conditioners=conditioners)
  inputs = model_inputs(dataclasses.replace(loaded, model=other))
  assert not inputs.prompt and len(inputs.classes) == 10
  assert inputs.masked_image and not inputs.starts_from_noise
  assert inputs.subject == "Class" and inputs.classes[3] == ("3", 3)


def edited(layers=(), size=(16, 16)):
  """What the browser's editor gives."""
  background = np.full((*size, 4), 255, np.uint8)
  return {"background": background, "layers": list(layers)}


def inpainting_fields(**values):
  fields = {"editor": edited(), "rectangle": "", "outpaint": ""}
  return fields | values


def test_what_is_painted_is_the_mask():
  layer = np.zeros((16, 16, 4), np.uint8)
  layer[2:5, 3:9] = 255
  found = inpainting_request(inpainting_fields(editor=edited([layer])))
  np.testing.assert_array_equal(found.mask > 0, layer[..., 3] > 0)
  found = inpainting_request(
    inpainting_fields(editor=edited([layer]), rectangle="8, 10, 12, 99")
  )
  expected = layer[..., 3] > 0
  expected[10:, 8:12] = True
  np.testing.assert_array_equal(found.mask > 0, expected)


def test_extending_an_image_needs_no_mask():
  found = inpainting_request(inpainting_fields(outpaint="0, 0, 8, 0"))
  assert found.outpaint == (0, 0, 8, 0) and found.mask is None


@pytest.mark.parametrize(
  "values, message",
  [
    ({"editor": None}, "give an image"),
    ({}, "nothing is to be generated"),
    ({"outpaint": "8"}, "extension takes 4 whole numbers"),
    ({"rectangle": "a, b"}, "rectangle takes 4 whole numbers"),
    ({"rectangle": "0,0,1,1", "outpaint": "0,0,8,0"}, "not both"),
  ],
)
def test_inpainting_is_checked(values, message):
  with pytest.raises(ConfigError, match=message):
    inpainting_request(inpainting_fields(**values))


def test_interpolations_and_variations():
  fields = {"prompt": "a", "num": 4, "variation": 0.2, "end": ""}
  found = variation_request({**fields, "kind": "Variations"})
  assert found == GenerationRequest(prompt="a", num=4, variation=0.2)
  found = variation_request({**fields, "kind": "Interpolation", "end": "b"})
  assert found == GenerationRequest(prompt=("a", "b"), interpolate=4)
  with pytest.raises(ConfigError, match="one prompt"):
    variation_request({**fields, "kind": "Variations", "end": "b"})


def test_a_grid_of_the_form():
  values = {"prompt": "a | b\nc", "samplers": ["ddim"], "seed": "1"}
  found = grid_of_form({**values, "steps_axis": "5, 9", "guidance_axis": ""})
  assert [(r.prompt, r.steps) for r in found] == [
    *(("a", 5), ("a", 9), ("a, b", 5), ("a, b", 9), ("c", 5), ("c", 9)),
  ]
  with pytest.raises(ConfigError, match="numbers that are separated"):
    grid_of_form({**values, "steps_axis": "five"})
  many = ", ".join(map(str, range(1, 102)))
  with pytest.raises(ConfigError, match="are the most"):
    grid_of_form({**values, "steps_axis": many})


def test_arrays_in_memory_are_inputs():
  image = np.zeros((8, 8, 3), np.uint8)
  assert request_of_form({"image": image, "prompt": ""}).image is image


def sent(pipe, module, path, metadata):
  """The values that a tab's form gets, by field."""
  worker = Worker(pipe)
  context = PageContext(
    worker, model_inputs(pipe.loaded), Sessions(), [("canny", "/c")]
  )
  with gr.Blocks():
    form = module.build_tab(context)
  updates = zip(form.parts, form.updates(metadata, str(path)), strict=True)
  is_kept = lambda value: isinstance(value, dict) and "__type__" in value
  return {name: value for name, value in updates if not is_kept(value)}


@pytest.mark.parametrize(
  "module, field",
  [
    (image_to_image, "image"),
    (inpainting, "editor"),
    (upscale, "image"),
    (controlnet, "control_image"),
  ],
  ids=lambda each: each if isinstance(each, str) else each.TAB,
)
def test_what_is_sent_to_a_tab_carries_the_image(pipe, module, field):
  own = pipe.prepare(request(prompt="a cat", seed=3))
  values = sent(pipe, module, "/a.png", own.metadata(0))
  assert values[field] == "/a.png"
  assert values["prompt"] == "a cat" and values["seed"] == "3"
  assert values["width"] is values["height"] is None  # the image's own
  assert sent(pipe, module, "/a.jpg", {}) == {field: "/a.jpg"}


def test_text_to_image_is_sent_the_settings_alone(pipe):
  own = pipe.prepare(request(prompt="a cat", seed=3))
  values = sent(pipe, text_to_image, "/a.png", own.metadata(0))
  assert "/a.png" not in values.values() and values["width"] == 16


def test_an_image_of_an_interpolation_brings_one_prompt():
  metadata = {"prompt": ["a", "b"], "interpolate": 3, "index": 1, "seed": 2}
  values = form_for_image(metadata, NAMES)
  assert values["prompt"] == "a" and values["other"] == ""
