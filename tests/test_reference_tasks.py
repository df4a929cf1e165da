"""Tasks that start from an image, compared with diffusers' pipelines."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_families
from PIL import Image
from reference_families import PROMPTS, normal, ours, request_of, theirs

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.pretrained.configs.scheduler_config import (
  sampler_config as read_recipe,
)
from ldm_jax.pretrained.controlnet import with_controlnet
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling import (
  GenerationInputs,
  ImageInputs,
  SamplingConfig,
  SamplingEngine,
)
from ldm_jax.sampling.conditioning import encode_conditions

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
torch_models = pytest.importorskip("torch_models")

pytestmark = pytest.mark.slow

highest = reference_families.highest  # of matrix products, in every test
HEIGHT, WIDTH = 32, 48
RNG = np.random.default_rng(5)
IMAGE = RNG.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[6:21, 11:40] = True
SCHEDULERS = (
  "DDIMScheduler",
  "EulerDiscreteScheduler",
  "DPMSolverMultistepScheduler",
  "UniPCMultistepScheduler",
)


def opened_of(name, tmp_path_factory):
  folder = tmp_path_factory.mktemp(name)
  torch.manual_seed(3)
  pipe = torch_models.FAMILIES[name](folder)
  pipe.save_pretrained(folder / "model")
  return pipe, open_model(str(folder / "model"))


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
  return opened_of("sd1", tmp_path_factory)


@pytest.fixture(autouse=True)
def same_noise(monkeypatch):
  """Their noise is taken from the returned list, in order; posteriors give
  their mode, as ours do."""
  noises = []
  from diffusers.models.autoencoders import vae
  from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_img2img as img2img,
  )
  from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_inpaint as inpaint,
  )
  from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_upscale as upscale,
  )

  def next_noise(shape, **_):
    noise = theirs(noises.pop(0))
    assert noise.shape == tuple(shape)
    return noise

  for module in (img2img, inpaint, upscale):
    monkeypatch.setattr(module, "randn_tensor", next_noise)
  monkeypatch.setattr(
    vae.DiagonalGaussianDistribution, "sample", lambda self, *_: self.mode()
  )
  return noises


def scheduled(pipe, name):
  kind = getattr(diffusers, name)
  pipe.scheduler = kind.from_config(pipe.scheduler.config)
  pipe.set_progress_bar_config(disable=True)
  return pipe


def ask(pipe, **more):
  return ours(
    pipe(
      PROMPTS,
      negative_prompt=["a cat"] * 2,
      num_inference_steps=10,
      guidance_scale=4.0,
      output_type="latent",
      **more,
    ).images
  )


def drawn(pipe, opened, noise, given, height=HEIGHT, width=WIDTH, **changes):
  """ldm_jax's latents, sampled as the pipeline's scheduler specifies."""
  name = type(pipe.scheduler).__name__
  sampler_config = read_recipe(
    dict(pipe.scheduler.config) | {"_class_name": name}
  )
  sampler_config = dataclasses.replace(
    sampler_config, steps=10, compat="diffusers"
  )
  settings = SamplingConfig(
    height, width, sampler_config, ClassifierFreeGuidance(4.0), **changes
  )
  engine = SamplingEngine(opened.model, opened.params, MeshShape().build())
  order = GenerationInputs(2, 2, noise, "latents", given)
  sides = encode_conditions(opened, request_of(["a cat"] * 2, height, width))
  (found,) = engine.generate(settings, *sides, order)
  return found


def twice(array):
  return np.stack([array, array])


def close(found, expected):
  np.testing.assert_allclose(
    found, expected, atol=2e-3 * np.abs(expected).max()
  )


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.35, 0.8, 1.0])
def test_image_to_image(sd1, same_noise, name, strength):
  pipe, opened = sd1
  pipe = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
  noise = np.asarray(normal(2, 8, 12, 4))
  same_noise.append(noise)
  expected = ask(
    scheduled(pipe, name),
    image=Image.fromarray(IMAGE),
    strength=strength,
  )
  given = ImageInputs(twice(IMAGE))
  found = drawn(pipe, opened, noise, given, strength=strength)
  close(found, expected)


def inpainted(pipe, opened, noises, strength):
  """Theirs and ours."""
  noise = np.asarray(normal(2, 8, 12, 4))
  noises.append(noise)
  expected = ask(
    pipe,
    image=Image.fromarray(IMAGE),
    mask_image=Image.fromarray(MASK),
    strength=strength,
    height=HEIGHT,
    width=WIDTH,
  )
  given = ImageInputs(twice(IMAGE), twice(MASK))
  return drawn(pipe, opened, noise, given, strength=strength), expected


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_by_any_model(sd1, same_noise, name, strength):
  pipe, opened = sd1
  pipe = diffusers.StableDiffusionInpaintPipeline(**pipe.components)
  close(*inpainted(scheduled(pipe, name), opened, same_noise, strength))


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_by_its_own_model(tmp_path_factory, same_noise, strength):
  pipe, opened = opened_of("inpainting", tmp_path_factory)
  pipe = scheduled(pipe, "DDIMScheduler")
  close(*inpainted(pipe, opened, same_noise, strength))


def test_upscaling(tmp_path_factory, same_noise):
  pipe, opened = opened_of("upscaler", tmp_path_factory)
  small = IMAGE[:8, :16]
  noise = np.asarray(normal(2, 8, 16, 4))
  keys = samplers.image_keys(
    jax.random.fold_in(jax.random.key(0), 0), jnp.arange(2)
  )
  keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2**31 - 1)
  same_noise.append(np.asarray(samplers.normal(keys, (8, 16, 3))))
  pipe = scheduled(pipe, "DDIMScheduler")
  expected = ask(
    pipe,
    image=[Image.fromarray(small)] * 2,
    latents=theirs(noise),
    noise_level=20,
  )
  close(drawn(pipe, opened, noise, ImageInputs(twice(small)), 32, 64), expected)


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_a_controlnet(sd1, tmp_path, scale):
  pipe, opened = sd1
  torch.manual_seed(9)
  control = diffusers.ControlNetModel.from_unet(
    pipe.unet, conditioning_embedding_out_channels=(16, 32, 48)
  )
  torch_models.randomized(control)
  with torch.no_grad():
    for parameter in control.parameters():
      if not parameter.abs().sum():  # zero convolutions would have no effect
        parameter.copy_(0.1 * torch.randn_like(parameter))
  control.save_pretrained(tmp_path / "control")
  both = diffusers.StableDiffusionControlNetPipeline(
    **pipe.components, controlnet=control
  )
  noise = np.asarray(normal(2, 8, 12, 4))
  expected = ask(
    scheduled(both, "DDIMScheduler"),
    image=Image.fromarray(IMAGE),
    latents=theirs(noise),
    controlnet_conditioning_scale=scale,
    height=HEIGHT,
    width=WIDTH,
  )
  given = ImageInputs(hints=twice(IMAGE))
  opened = with_controlnet(opened, str(tmp_path / "control"))
  found = drawn(both, opened, noise, given, control=(scale, 0.0, 1.0))
  close(found, expected)
  inactive = drawn(both, opened, noise, given, control=(0.0, 0.0, 1.0))
  assert np.abs(inactive - expected).max() > 0.02 * np.abs(expected).max()
