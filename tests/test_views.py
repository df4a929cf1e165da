"""A model's first stage and grids of requests, as images."""

import numpy as np
import pytest
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.errors import ConfigError
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.sampling.views.first_stage import view_first_stage
from ldm_jax.sampling.views.request_grid import (
  labelled_sheet,
  prompt_matrix,
  request_grid,
)


@pytest.fixture(scope="module")
def loaded(folder):  # noqa: F811
  return Pipeline.from_pretrained(folder).loaded


def test_the_first_stage_reconstructs_an_image(loaded):
  image = np.random.default_rng(0).integers(0, 256, (21, 17, 3), np.uint8)
  view = view_first_stage(loaded, image)
  unit = loaded.model.size_multiple
  assert view.image.shape == (21 // unit * unit, 17 // unit * unit, 3)
  assert view.reconstruction.shape == view.image.shape
  error = view.image.astype(float) - view.reconstruction
  np.testing.assert_allclose(
    view.psnr, 10 * np.log10(255**2 / np.mean(error**2)), rtol=1e-4
  )
  expected = np.minimum(4 * np.abs(error), 255)
  np.testing.assert_array_equal(view.difference, expected)
  channels = loaded.model.first_stage.latent_channels
  assert len(view.latents) == channels
  assert view.latents.min() == 0 and view.latents.max() == 255
  assert view.spread[0] < view.spread[1]


def test_a_grid_has_every_combination_with_one_seed():
  request = GenerationRequest(prompt="a cat", seed=-1, num=4)
  found = request_grid(request, samplers=["ddim", "lms"], guidance=[1.0, 3.0])
  assert [(r.sampler, r.guidance) for r in found] == [
    *(("ddim", 1.0), ("ddim", 3.0)),
    *(("lms", 1.0), ("lms", 3.0)),
  ]
  assert len({r.seed for r in found}) == 1 and found[0].seed >= 0
  assert {(r.prompt, r.steps, r.num) for r in found} == {("a cat", 50, 1)}


def test_a_grid_without_axes_is_the_request():
  request = GenerationRequest(prompt="a cat", seed=3)
  assert request_grid(request) == [request]


def test_a_grid_is_checked():
  with pytest.raises(ConfigError, match="one prompt"):
    request_grid(GenerationRequest(prompt=("a", "b")))
  with pytest.raises(ConfigError):
    request_grid(GenerationRequest(), samplers=["no such sampler"])


def test_a_sheet_has_a_row_for_all_values_of_the_last_field():
  found = request_grid(GenerationRequest(), steps=[5, 10, 20], guidance=[1, 3])
  images = [np.full((128, 128, 3), 40 * i, np.uint8) for i in range(6)]
  sheet = labelled_sheet(found, images)
  assert sheet.shape[1] == 2 * 128 + 2
  row = sheet.shape[0] // 3
  for i in range(6):
    top, left = (row + 1) * (i // 2), 130 * (i % 2)
    assert (sheet[top + 64, left + 64] == 40 * i).all()
  with pytest.raises(ConfigError, match="one size"):
    labelled_sheet(found[:2], [images[0], images[1][:64]])


def test_the_prompt_matrix_has_the_first_part_in_every_prompt():
  assert prompt_matrix("a cat") == ["a cat"]
  expected = ["a", "a, b", "a, c", "a, b, c"]
  assert prompt_matrix("a | b|c ") == expected
