"""Continuous batching: an image of a slot is the image alone, bit for bit."""

import numpy as np
import pytest
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.slots import Slots, slot_job

SIZE = {"height": 16, "width": 16}
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[4:12, 4:12] = 255
# Other samplers, lengths, seeds, guidance and thresholds.
REQUESTS = [
  {"prompt": "a cat", "steps": 3, "seed": 1, "sampler": "ddim", "num": 2},
  {"prompt": "a dog", "steps": 5, "seed": 2, "sampler": "Euler a"},
  {"prompt": "cat dog", "steps": 4, "sampler": "DPM++ 2M Karras"},
  {"prompt": "", "steps": 2, "guidance": 3.0, "guidance_rescale": 0.5},
  {"prompt": "[a cat:a dog:0.5]", "emphasis": True, "steps": 4, "seed": 9},
  {"prompt": "a cat", "image": IMAGE, "strength": 0.6, "steps": 5},
]


@pytest.fixture(scope="module")
def pipe(folder):  # noqa: F811
  return Pipeline.from_pretrained(folder)


def jobs(pipe, request):
  generation = pipe.prepare(**SIZE, **request)
  count = generation.inputs.count
  return [slot_job(generation, place) for place in range(count)]


def run(waiting, count, first=0):
  """The images of jobs in `count` slots; each enters as soon as it can."""
  slots = Slots(waiting[0], count)
  for slot in range(first):  # the first job does not begin in slot 0
    slots.put(slot, waiting[0])
  queue, places, images = list(enumerate(waiting)), {}, {}
  while queue or places:
    while queue and (slot := slots.free()) is not None:
      places[slot], job = queue.pop(0)
      slots.put(slot, job)
    for slot in slots.advance():
      if slot in places:
        place = places.pop(slot)
        job, latents = slots.jobs[slot], slots.latents(slot)
        images[place] = job.decoded(job.begin_decoding(latents))
      slots.remove(slot)
  return [images[place] for place in range(len(waiting))]


@pytest.fixture(scope="module")
def together(pipe):
  """Requests, their jobs and the images that they give in three slots."""
  made = [jobs(pipe, request) for request in REQUESTS]
  every = [job for group in made for job in group]
  assert len({job.signature for job in every}) == 1
  images = iter(run(every, 3))
  return [
    (request, group, [next(images) for _ in group])
    for request, group in zip(REQUESTS, made, strict=True)
  ]


def test_an_image_is_itself_alone_in_any_slot(together):
  for _, group, images in together:
    for job, image in zip(group, images, strict=True):
      for first in (0, 2):
        np.testing.assert_array_equal(run([job], 3, first)[0], image)


def test_an_image_is_that_of_the_pipeline(pipe, together):
  for request, _, images in together:
    expected = pipe(**SIZE, **request, output="numpy").images
    difference = np.abs(expected.astype(int) - np.stack(images))
    assert difference.max() <= 1, request
    assert np.stack(images).std() > 10


def test_an_inpainted_image_keeps_what_is_known(pipe):
  request = {"prompt": "a cat", "image": IMAGE, "mask": MASK, "steps": 4}
  (image,) = run(jobs(pipe, request), 2)
  expected = pipe(**SIZE, **request, output="numpy").images[0]
  np.testing.assert_array_equal(image[MASK == 0], IMAGE[MASK == 0])
  assert np.abs(expected.astype(int) - image).max() <= 1


def test_signatures_distinguish_programs(pipe):
  plain = jobs(pipe, REQUESTS[0])[0]
  others = [
    {"prompt": "a cat", "guidance": 1.0},
    {"prompt": "a cat", "image": IMAGE, "mask": MASK},
    {"prompt": "cat " * 100},
  ]
  for request in others:
    assert jobs(pipe, {"steps": 2, **request})[0].signature != plain.signature


def test_a_preview_is_the_last_x0(pipe):
  (job,) = jobs(pipe, {"prompt": "a cat", "steps": 3, "sampler": "dpmpp_2m"})
  slots = Slots(job, 2)
  slots.put(1, job)
  previews = []
  while not slots.advance():
    previews.append(np.asarray(slots.preview(1)))
  # DPM-Solver++ ends at x0 of its last step.
  np.testing.assert_allclose(
    slots.latents(1), slots.preview(1), rtol=0, atol=1e-5
  )
  assert not np.allclose(previews[0], previews[1])


def test_inversion_does_not_share_a_batch(pipe):
  generation = pipe.prepare(
    **SIZE, prompt="", image=IMAGE, invert=True, output="latents", steps=2
  )
  with pytest.raises(ValueError, match="do not share a batch"):
    slot_job(generation, 0)
