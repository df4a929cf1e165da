"""Every family compared with diffusers: random weights, the same numbers."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_families
from PIL import Image
from reference_families import (
  PROMPTS,
  by_hand,
  condition_of,
  generate_latents,
  normal,
  ours,
  reference_conditions,
  request_of,
  theirs,
)

from ldm_jax.cli import sample
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.loaded_model import skip_last_blocks
from ldm_jax.nn.conditioners.embedders import Condition, SizeEmbedder
from ldm_jax.nn.conditioners.spatial import DepthMap
from ldm_jax.sampling import SamplingConfig
from ldm_jax.sampling.conditioning import ConditionInputs, encode_conditions

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow
family, highest = reference_families.family, reference_families.highest

CHANGES_IMAGES = ("refiner", "inpainting", "upscaler", "depth")


def agree(found, run, module, times=20):
  """Our error against float64 is at most `times` that of torch's float32."""
  with torch.no_grad():
    exact = run(copy.deepcopy(module).double(), torch.float64)
    single = run(module, torch.float32)
  for name in exact:
    scale = np.abs(exact[name]).max()
    floor = np.abs(single[name] - exact[name]).max() / scale
    error = np.abs(np.asarray(found[name]) - exact[name]).max() / scale
    assert error <= max(times * floor, 1e-5), (name, error, floor)


def test_the_unet_at_fractional_times_of_a_landscape(family):
  _, pipe, _, loaded = family
  unet, config = loaded.model.unet, pipe.unet.config
  xt, t = normal(3, 8, 12, loaded.unet_channels), jnp.float32([1, 500.25, 999])
  width = config.get("cross_attention_dim")
  context = normal(3, 20, width) if width else None
  vector = added = labels = None
  if unet.vector == "table":
    labels = np.int64([20, 0, 350])
    vector = jax.nn.one_hot(labels, 1000)
  if unet.vector == "mlp":
    count = config.projection_class_embeddings_input_dim - 40
    sizes = np.random.default_rng(1).integers(0, 1024, (3, count // 16))
    embedder = next(
      p for p in loaded.model.conditioners if isinstance(p, SizeEmbedder)
    )
    numbers = jnp.asarray(sizes, jnp.float32)
    size_vector = embedder.apply({}, numbers, jnp.zeros(3, bool)).vector
    pooled = normal(3, 40)
    vector = jnp.concatenate([pooled, size_vector], -1)
    added = {"text_embeds": pooled, "time_ids": np.float32(sizes)}

  def run(module, dtype):
    arguments = [theirs(xt, dtype), theirs(t, dtype)]
    more = {}
    if width:
      arguments.append(theirs(context, dtype))
    if labels is not None:
      more["class_labels"] = torch.tensor(labels)
    if added:
      more["added_cond_kwargs"] = {
        name: theirs(value, dtype) for name, value in added.items()
      }
    return {"answer": ours(module(*arguments, **more).sample)}

  found = unet.apply(
    loaded.params.unet, xt, t, Condition(context=context, vector=vector)
  )
  agree({"answer": found}, run, pipe.unet)


def test_moments_and_decoding(family):
  name, pipe, _, loaded = family
  images, first = normal(2, 32, 48, 3), loaded.model.first_stage
  latents = normal(2, 8, 12, first.latent_channels)
  vae = pipe.vqvae if name.startswith("ldm") else pipe.vae

  def run(module, dtype):
    encoded = module.encode(theirs(images, dtype))
    decoded = ours(module.decode(theirs(latents, dtype)).sample)
    if name == "ldm":
      return {"mean": ours(encoded.latents), "images": decoded}
    spread = encoded.latent_dist
    return {
      "mean": ours(spread.mean),
      "logvar": ours(spread.logvar),
      "images": decoded,
    }

  variables = loaded.params.first_stage
  posterior = first.apply(variables, images, method="encode")
  found = {
    "mean": posterior.mean,
    "images": first.apply(variables, latents, method="decode"),
  }
  if name != "ldm":
    found["logvar"] = posterior.logvar
  agree(found, run, vae)


def conditions_of(loaded, negative):
  """A request of every family; `condition_of` concatenates the depth map."""
  request = request_of([negative] * 2)
  if loaded.model.find_conditioner(DepthMap) is None:
    return request
  return dataclasses.replace(request, depth=np.zeros((32, 32), np.float32))


@pytest.mark.parametrize("negative", [None, "", "a cat"])
def test_prompts_are_encoded_as_by_diffusers(family, negative):
  name, pipe, _, loaded = family
  if name == "ldm":
    pytest.skip("it is unconditional")
  with torch.no_grad():
    expected = reference_conditions(pipe, name, negative)
  encoded = encode_conditions(loaded, conditions_of(loaded, negative))
  concat = normal(2, 8, 8, max(loaded.unet_channels - 4, 1))
  for side, (context, pooled) in zip(encoded, expected, strict=True):
    found = condition_of(loaded, side, concat)
    np.testing.assert_allclose(found.context, ours(context), atol=2e-5)
    if pooled is not None:
      np.testing.assert_allclose(
        found.vector[:, : pooled.shape[1]], ours(pooled), atol=2e-5
      )


@pytest.mark.parametrize("negative", [None, "a cat"])
def test_ten_steps_of_guided_ddim(family, negative):
  name, pipe, _, loaded = family
  if name in CHANGES_IMAGES:
    pytest.skip("its pipeline begins with an image")
  first = loaded.model.first_stage
  noise = np.asarray(normal(2, 8, 8, first.latent_channels))
  settings = SamplingConfig(
    height=8 * first.stride,
    width=8 * first.stride,
    sampler_config=dataclasses.replace(loaded.sampler_config, steps=10),
    guidance=ClassifierFreeGuidance(4.0),
  )
  if name == "ldm":
    expected = by_hand(pipe, noise, [{}])
  elif name == "ldm_text":
    sides = reference_conditions(pipe, name, negative)
    sides = [{"encoder_hidden_states": context} for context, _ in sides]
    expected = by_hand(pipe, noise, sides)
  else:
    expected = ours(
      pipe(
        PROMPTS,
        negative_prompt=None if negative is None else [negative] * 2,
        latents=theirs(noise),
        num_inference_steps=10,
        guidance_scale=4.0,
        height=settings.height,
        width=settings.width,
        output_type="latent",
      ).images
    )
  texts = [] if name == "ldm" else PROMPTS
  request = ConditionInputs(texts, [negative] * 2, None, 32, 32)
  found = generate_latents(loaded, settings, request, noise)
  np.testing.assert_allclose(
    found, expected, atol=2e-3 * np.abs(expected).max()
  )


def test_ten_steps_where_a_pipeline_begins_with_an_image(family):
  """The refiner from noise alone, the others with concatenated channels."""
  name, pipe, _, loaded = family
  if name not in CHANGES_IMAGES:
    pytest.skip("its pipeline begins with noise")
  noise, concat = normal(2, 8, 8, 4), None
  if loaded.unet_channels > 4:
    concat = normal(2, 8, 8, loaded.unet_channels - 4)
  if name == "depth":  # their pipeline scales every image to -1 ... 1
    low, high = (
      f(concat, (1, 2, 3), keepdims=True) for f in (jnp.min, jnp.max)
    )
    concat = 2 * (concat - low) / (high - low) - 1
  with torch.no_grad():
    expected = reference_conditions(pipe, name, "a cat")
  sides = []
  for (context, pooled), score in zip(expected, (6.0, 2.5), strict=True):
    side = {"encoder_hidden_states": context}
    if name == "refiner":
      numbers = torch.tensor([[32.0, 32.0, 0.0, 0.0, score]] * 2)
      added = {"text_embeds": pooled, "time_ids": numbers}
      side["added_cond_kwargs"] = added
    if name == "upscaler":
      side["class_labels"] = torch.tensor([20, 20])
    sides.append(side)
  expected = by_hand(pipe, noise, sides, concat=concat)

  model, params = loaded.model, loaded.params
  conditions = []
  for side in encode_conditions(loaded, conditions_of(loaded, "a cat")):
    conditions.append(condition_of(loaded, side, concat))
  denoise = model.guided_denoiser(
    params, conditions[1], conditions[0], ClassifierFreeGuidance(4.0)
  )
  plan = dataclasses.replace(loaded.sampler_config, steps=10).plan(
    model.schedule
  )
  keys = jax.random.split(jax.random.key(0), 2)
  walk = jax.jit(lambda xt: samplers.sample(denoise, xt, plan.table, keys))
  np.testing.assert_allclose(
    walk(noise), expected, atol=2e-3 * np.abs(expected).max()
  )


@pytest.mark.parametrize("size", [(32, 48), (40, 56)])
def test_a_torch_seed_gives_the_image_of_diffusers(family, tmp_path, size):
  """The second size has odd sides of features within the U-Net."""
  height, width = size
  name, pipe, folder, _ = family
  if name not in ("sd1", "sd2", "sdxl"):
    pytest.skip("no pipeline of theirs begins with a seed's noise alone")
  flags = ["--rng=torch", "--seed=7", "--steps=4", "--guidance=3"]
  flags += [f"--prompt={PROMPTS[0]}", "--num=2", f"--out={tmp_path}"]
  flags += [f"-H={height}", f"-W={width}"]
  assert sample.main([f"--model={folder}", *flags]) == 0
  expected = pipe(
    PROMPTS[0],
    num_images_per_prompt=2,
    generator=torch.Generator().manual_seed(7),
    num_inference_steps=4,
    guidance_scale=3.0,
    height=height,
    width=width,
  ).images
  for i, image in enumerate(expected):
    with Image.open(tmp_path / f"{i:05d}.png") as stored:
      found = np.asarray(stored, np.int32)
    assert found.std() > 5  # no blank image agrees with another
    assert np.abs(found - np.asarray(image, np.int32)).max() <= 1


def test_skipped_blocks_are_those_that_diffusers_skips(family):
  name, pipe, _, loaded = family
  if name not in ("sd1", "sd2", "sdxl"):
    pytest.skip("its pipeline skips nothing")
  asked = {"device": "cpu", "num_images_per_prompt": 1, "clip_skip": 1}
  try:
    with torch.no_grad():
      expected = pipe.encode_prompt(
        PROMPTS, do_classifier_free_guidance=False, **asked
      )[0]
  except AttributeError:
    pytest.skip("diffusers' own clip_skip is broken with this transformers")
  skipped = skip_last_blocks(loaded, 1)
  encoded, _ = encode_conditions(skipped, request_of([None] * 2))
  encoded = jax.tree.map(jnp.asarray, encoded)
  found = skipped.model.condition(skipped.params, encoded.raw, encoded.is_null)
  np.testing.assert_allclose(found.context, ours(expected), atol=2e-5)
