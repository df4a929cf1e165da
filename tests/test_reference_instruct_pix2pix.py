"""InstructPix2Pix compared with diffusers: a forward pass, sampling, files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_families
from PIL import Image
from reference_families import PROMPTS, ours, theirs

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.pretrained.convert import ConvertRequest, convert
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.sampling.pipeline import Pipeline

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
torch_models = pytest.importorskip("torch_models")

pytestmark = pytest.mark.slow

highest = reference_families.highest  # of matrix products, in every test
HEIGHT, WIDTH = 32, 48
RNG = np.random.default_rng(5)
IMAGE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
NOISE = RNG.standard_normal((2, 8, 12, 4)).astype(np.float32)
SCHEDULERS = (
  "DDIMScheduler",
  "EulerDiscreteScheduler",
  "DPMSolverMultistepScheduler",
  "UniPCMultistepScheduler",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp("edit")
  torch.manual_seed(3)
  pipe = torch_models.instruct_pix2pix(place)
  pipe.save_pretrained(place / "model")
  return place / "model"


@pytest.fixture(scope="module")
def pipe(folder):
  kind = diffusers.StableDiffusionInstructPix2PixPipeline
  made = kind.from_pretrained(folder, safety_checker=None)
  made.set_progress_bar_config(disable=True)
  return made


def edited(pipe, **more):
  options = {"negative_prompt": ["a cat"] * 2, "guidance_scale": 4.0}
  options |= {"image_guidance_scale": 1.7, "num_inference_steps": 10}
  return ours(
    pipe(
      PROMPTS,
      [Image.fromarray(IMAGE)] * 2,
      latents=theirs(NOISE),
      output_type="latent",
      **(options | more),
    ).images
  )


def ours_of(path, **more):
  fields = {"guidance": 4.0, "image_guidance_scale": 1.7, "steps": 10}
  found = Pipeline.open(str(path), more.pop("options", LoadOptions()))(
    prompt=PROMPTS,
    negative_prompt="a cat",
    image=IMAGE,
    initial_latents=NOISE,
    compat="diffusers",
    output="latents",
    **(fields | more),
  )
  return found.images


def close(found, expected):
  np.testing.assert_allclose(
    found, expected, atol=2e-3 * np.abs(expected).max()
  )


def test_one_forward_pass(pipe, folder):
  loaded = open_model(str(folder))
  assert loaded.model.find_conditioner(SourceImage) is not None
  assert loaded.warnings == ()
  context = RNG.standard_normal((2, 7, 32)).astype(np.float32)
  latents = RNG.standard_normal(NOISE.shape).astype(np.float32)
  t = np.float32([3, 700])
  with torch.no_grad():
    both = torch.cat([theirs(NOISE), theirs(latents)], 1)
    needed = pipe.unet(both, torch.tensor(t), torch.tensor(context)).sample
  condition = Condition(jnp.asarray(context), concat=jnp.asarray(latents))
  predict = jax.jit(loaded.model.predict)
  found = predict(loaded.params, jnp.asarray(NOISE), jnp.asarray(t), condition)
  needed = ours(needed)
  np.testing.assert_allclose(found, needed, atol=2e-4 * np.abs(needed).max())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_sampling(pipe, folder, tmp_path, name):
  kind = getattr(diffusers, name)
  pipe.scheduler = kind.from_config(pipe.scheduler.config)
  pipe.save_pretrained(tmp_path / "model")
  close(ours_of(tmp_path / "model"), edited(pipe))


@pytest.mark.parametrize(
  "text, image", [(4.0, 1.0), (1.0, 1.7), (4.0, 0.9), (4.0, 3.0)]
)
def test_scales(pipe, folder, text, image):
  """Where diffusers uses no guidance, neither does compat."""
  pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
  expected = edited(pipe, guidance_scale=text, image_guidance_scale=image)
  found = ours_of(
    folder, guidance=text, image_guidance_scale=image, sampler="ddim"
  )
  close(found, expected)


def test_files_that_are_written(pipe, folder, tmp_path):
  """Folder to single file to folder, which diffusers samples from alike."""
  pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
  expected = edited(pipe)
  file = tmp_path / "model.safetensors"
  convert(ConvertRequest(str(folder), str(file), single_file=True))
  options = LoadOptions(tokenizer=str(folder / "tokenizer"))
  close(ours_of(file, options=options, sampler="ddim"), expected)
  again = tmp_path / "again"
  convert(ConvertRequest(str(file), str(again), options=options))
  index = json.loads((again / "model_index.json").read_text())
  kind = diffusers.StableDiffusionInstructPix2PixPipeline
  assert index["_class_name"] == kind.__name__
  written = kind.from_pretrained(again)
  written.set_progress_bar_config(disable=True)
  close(edited(written), expected)
