"""Every family as a diffusers pipeline and loaded by ldm_jax, to compare."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  MaskedLatents,
  NoisyLowResolution,
)
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling import GenerationInputs, SamplingEngine
from ldm_jax.sampling.conditioning import ConditionInputs, encode_conditions

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
torch_models = pytest.importorskip("torch_models")

FAMILIES = list(torch_models.FAMILIES)
PROMPTS = ["a red fox in the snow", "painting of a cat"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
  """(name, diffusers pipeline, its folder, the same loaded by ldm_jax)."""
  folder = tmp_path_factory.mktemp(request.param)
  torch.manual_seed(FAMILIES.index(request.param))
  pipe = torch_models.FAMILIES[request.param](folder)
  pipe.save_pretrained(folder / "model")
  pipe.set_progress_bar_config(disable=True)
  loaded = open_model(str(folder / "model"))
  return request.param, pipe, folder / "model", loaded


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def normal(*shape):
  rng = np.random.default_rng(sum(shape))
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def theirs(array, dtype=torch.float32):
  """A numpy or jax array as a torch tensor, channels first."""
  tensor = torch.tensor(np.asarray(array)).to(dtype)
  return tensor.movedim(-1, 1) if tensor.ndim == 4 else tensor


def ours(tensor):
  array = tensor.detach().double().numpy()
  return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def request_of(negatives, height=32, width=32):
  return ConditionInputs(PROMPTS, negatives, None, height, width)


def bert_states(pipe, texts):
  ids = pipe.tokenizer(
    texts,
    padding="max_length",
    max_length=77,
    truncation=True,
    return_tensors="pt",
  ).input_ids
  return pipe.bert(ids)[0]


def reference_conditions(pipe, name, negative):
  """diffusers' (context, text vector) of the prompts, then of the negative
  one."""
  options = {
    "device": "cpu",
    "num_images_per_prompt": 1,
    "do_classifier_free_guidance": True,
    "negative_prompt": None if negative is None else [negative] * 2,
  }
  if name in ("sdxl", "refiner"):
    context, away, pooled, away_pooled = pipe.encode_prompt(PROMPTS, **options)
    return (context, pooled), (away, away_pooled)
  if name == "ldm_text":
    sides = (PROMPTS, [negative or ""] * 2)
    return tuple((bert_states(pipe, texts), None) for texts in sides)
  context, away = pipe.encode_prompt(PROMPTS, **options)
  return (context, None), (away, None)


def generate_latents(loaded, settings, request, noise):
  """Latents of a request, by ldm_jax."""
  positive, away = encode_conditions(loaded, request)
  engine = SamplingEngine(loaded.model, loaded.params, MeshShape().build())
  order = GenerationInputs(len(noise), len(noise), noise, output="latents")
  (found,) = engine.generate(settings, positive, away, order)
  return found


def condition_of(loaded, conditioning, concat=None):
  """The condition of a side; `concat` are its channels next to x_t."""
  model, seen = loaded.model, {}
  if part := model.find_conditioner(MaskedImage):
    seen = {part.input_key: MaskedLatents(concat[..., 1:], concat[..., :1])}
  elif part := model.find_conditioner(LowResolution):
    seen = {
      part.input_key: NoisyLowResolution(concat, jnp.full(len(concat), 20))
    }
  elif part := model.find_conditioner(DepthMap):
    pixels = jnp.kron(concat[..., 0], jnp.ones((1, part.cell, part.cell)))
    seen = {part.input_key: pixels}
  conditioning = jax.tree.map(jnp.asarray, conditioning).with_images(seen)
  return model.condition(loaded.params, conditioning.raw, conditioning.is_null)


def by_hand(pipe, noise, sides, scale=4.0, concat=None):
  """DDIM with diffusers' U-Net and scheduler, if no pipeline gives latents."""
  pipe.scheduler.set_timesteps(10)
  xt = theirs(noise)
  more = [] if concat is None else [theirs(concat)]
  with torch.no_grad():
    for t in pipe.scheduler.timesteps:
      read = torch.cat([xt, *more], 1)
      outputs = [pipe.unet(read, t, **side).sample for side in sides]
      output = outputs[-1] + scale * (outputs[0] - outputs[-1])
      xt = pipe.scheduler.step(output, t, xt).prev_sample
  return ours(xt)
