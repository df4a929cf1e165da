"""Every family against diffusers: random weights, the same numbers."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax.commands.models import open_model
from ldm_jax.nn.conditioner import Condition, SizeEmbedder
from ldm_jax.opened import Request, hear
from ldm_jax.pretrained import loading, saving
from ldm_jax.runtime.sharding import MeshShape
from ldm_jax.sampling import Order, Settings, Studio

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
torch_models = pytest.importorskip("torch_models")

pytestmark = pytest.mark.slow

FAMILIES = list(torch_models.FAMILIES)
TEXTUAL = [name for name in FAMILIES if name != "ldm"]
PROMPTS = ["a red fox in the snow", "painting of a cat"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
  """(name, their pipeline, its folder, the same opened by us)."""
  folder = tmp_path_factory.mktemp(request.param)
  torch.manual_seed(FAMILIES.index(request.param))
  pipe = torch_models.FAMILIES[request.param](folder)
  pipe.save_pretrained(folder / "model")
  pipe.set_progress_bar_config(disable=True)
  opened = open_model(str(folder / "model"))
  return request.param, pipe, folder / "model", opened


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def draw(*shape):
  rng = np.random.default_rng(sum(shape))
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def theirs(array, dtype=torch.float32):
  """An array of ours for them: channels first."""
  tensor = torch.tensor(np.asarray(array)).to(dtype)
  return tensor.movedim(-1, 1) if tensor.ndim == 4 else tensor


def ours(tensor):
  array = tensor.detach().double().numpy()
  return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


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
  _, pipe, _, opened = family
  unet, config = opened.model.unet, pipe.unet.config
  xt, t = draw(3, 8, 12, opened.inputs), jnp.float32([1, 500.25, 999])
  width = config.get("cross_attention_dim")
  context = draw(3, 20, width) if width else None
  vector = added = None
  if unet.vector == "mlp":
    count = config.projection_class_embeddings_input_dim - 40
    sizes = np.random.default_rng(1).integers(0, 1024, (3, count // 16))
    embedder = next(
      p for p in opened.model.conditioners if isinstance(p, SizeEmbedder)
    )
    numbers = jnp.asarray(sizes, jnp.float32)
    told = embedder.apply({}, numbers, jnp.zeros(3, bool)).vector
    pooled = draw(3, 40)
    vector = jnp.concatenate([pooled, told], -1)
    added = {"text_embeds": pooled, "time_ids": np.float32(sizes)}

  def run(module, dtype):
    arguments = [theirs(xt, dtype), theirs(t, dtype)]
    more = {}
    if width:
      arguments.append(theirs(context, dtype))
    if added:
      more["added_cond_kwargs"] = {
        name: theirs(value, dtype) for name, value in added.items()
      }
    return {"answer": ours(module(*arguments, **more).sample)}

  found = unet.apply(
    opened.params.unet, xt, t, Condition(context=context, vector=vector)
  )
  agree({"answer": found}, run, pipe.unet)


def test_moments_and_decoding(family):
  name, pipe, _, opened = family
  images, first = draw(2, 32, 48, 3), opened.model.first_stage
  latents = draw(2, 8, 12, first.latent_channels)
  vae = pipe.vqvae if name == "ldm" else pipe.vae

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

  variables = opened.params.first_stage
  posterior = first.apply(variables, images, method="encode")
  found = {
    "mean": posterior.mean,
    "images": first.apply(variables, latents, method="decode"),
  }
  if name != "ldm":
    found["logvar"] = posterior.logvar
  agree(found, run, vae)


def request_of(negatives, height=32, width=32):
  return Request(PROMPTS, negatives, None, height, width)


def said_by_them(pipe, name, negative):
  """(context, vector of text) of prompts, then of what is led away from."""
  asked = {
    "device": "cpu",
    "num_images_per_prompt": 1,
    "do_classifier_free_guidance": True,
    "negative_prompt": None if negative is None else [negative] * 2,
  }
  if name in ("sdxl", "refiner"):
    context, away, pooled, away_pooled = pipe.encode_prompt(PROMPTS, **asked)
    return (context, pooled), (away, away_pooled)
  context, away = pipe.encode_prompt(PROMPTS, **asked)
  return (context, None), (away, None)


@pytest.mark.parametrize("negative", [None, "", "a cat"])
def test_what_prompts_say(family, negative):
  name, pipe, _, opened = family
  if name == "ldm":
    pytest.skip("it hears nothing")
  with torch.no_grad():
    expected = said_by_them(pipe, name, negative)
  said = hear(opened, request_of([negative] * 2), pytest.fail)
  for side, (context, pooled) in zip(said, expected, strict=True):
    side = jax.tree.map(jnp.asarray, side)
    found = opened.model.condition(opened.params, side.raw, side.is_null)
    np.testing.assert_allclose(found.context, ours(context), atol=2e-5)
    if pooled is not None:
      np.testing.assert_allclose(
        found.vector[:, : pooled.shape[1]], ours(pooled), atol=2e-5
      )


@pytest.mark.parametrize("negative", [None, "a cat"])
def test_ten_steps_of_guided_ddim(family, negative):
  name, pipe, _, opened = family
  if name == "refiner":
    pytest.skip("diffusers' refiner begins with an image")
  channels = opened.model.first_stage.latent_channels
  noise = np.asarray(draw(2, 8, 8, channels))
  settings = Settings(
    height=8 * opened.model.first_stage.stride,
    width=8 * opened.model.first_stage.stride,
    steps=10,
    guidance=1.0 if name == "ldm" else 4.0,
    landing=opened.landing,
  )
  if name == "ldm":
    expected = without_a_prompt(pipe, noise)
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
  request = Request(texts, [negative] * 2, None, 32, 32)
  positive, away = hear(opened, request, pytest.fail)
  studio = Studio(opened.model, opened.params, MeshShape().build())
  order = Order(2, 2, noise=noise, output="latents")
  (found,) = studio.draw(settings, positive, away, order)
  np.testing.assert_allclose(
    found, expected, atol=2e-3 * np.abs(expected).max()
  )


def without_a_prompt(pipe, noise):
  """DDIM with their U-Net and their scheduler, without a pipeline."""
  pipe.scheduler.set_timesteps(10)
  xt = theirs(noise)
  with torch.no_grad():
    for t in pipe.scheduler.timesteps:
      xt = pipe.scheduler.step(pipe.unet(xt, t).sample, t, xt).prev_sample
  return ours(xt)


def test_a_folder_comes_back_bit_for_bit(family, tmp_path):
  name, pipe, _, opened = family
  back = tmp_path / "back"
  saving.save_pretrained(
    opened.model, opened.params, str(back), words=opened.words, side=32
  )
  again = type(pipe).from_pretrained(back)
  for part in ("unet", "vae", "vqvae", "text_encoder", "text_encoder_2"):
    module = getattr(pipe, part, None)
    if module is None:
      continue
    before, after = module.state_dict(), getattr(again, part).state_dict()
    assert before.keys() == after.keys()
    for key in before:
      assert torch.equal(before[key], after[key]), (part, key)
  assert again.scheduler.config.prediction_type == (
    pipe.scheduler.config.prediction_type
  )
  if name in TEXTUAL:
    tokenizer = again.tokenizer or again.tokenizer_2
    ids = (pipe.tokenizer or pipe.tokenizer_2)(PROMPTS).input_ids
    assert tokenizer(PROMPTS).input_ids == ids


def test_a_single_file_comes_back_bit_for_bit(family, tmp_path):
  name, _, folder, opened = family
  path = str(tmp_path / "model.safetensors")
  saving.save_single_file(opened.model, opened.params, path)
  given = loading.configs_of(str(folder))
  if name == "ldm":
    given["vae"] = given.get("vae", {"norm_num_groups": 8})
  model, params = ldm_jax.from_single_file(path, config=given)
  assert model.prediction == opened.model.prediction
  jax.tree.map(np.testing.assert_array_equal, params.unet, opened.params.unet)
  jax.tree.map(
    np.testing.assert_array_equal,
    params.first_stage,
    opened.params.first_stage,
  )
  before, after = opened.params.conditioners, params.conditioners
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert model.unet == opened.model.unet


def test_diffusers_reads_our_single_file(family, tmp_path):
  name, pipe, folder, opened = family
  if name not in ("sd1", "sdxl"):
    pytest.skip("diffusers' reader drops block 23 of SD 2's tower by number")
  path = str(tmp_path / "model.safetensors")
  saving.save_single_file(opened.model, opened.params, path)
  unet = type(pipe.unet).from_single_file(
    path, config=str(folder), subfolder="unet"
  )
  for key, value in pipe.unet.state_dict().items():
    assert torch.equal(unet.state_dict()[key], value), key
