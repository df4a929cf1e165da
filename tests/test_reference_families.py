"""Every family against diffusers: random weights, the same numbers."""

import copy
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import ldm_jax
from ldm_jax.commands import sample
from ldm_jax.commands.models import Reading, open_model
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioner import ClassEmbedder, Condition, SizeEmbedder
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Request, hear, skip_blocks
from ldm_jax.pretrained import loading, saving
from ldm_jax.runtime.sharding import MeshShape
from ldm_jax.sampling import Order, Settings, Studio
from ldm_jax.weights.files import read_tensors

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
torch_models = pytest.importorskip("torch_models")

pytestmark = pytest.mark.slow

FAMILIES = list(torch_models.FAMILIES)
CHANGES_IMAGES = ("refiner", "inpainting", "upscaler")
OLD_NAMES = {  # of the attention in autoencoders
  ".to_q.": ".query.",
  ".to_k.": ".key.",
  ".to_v.": ".value.",
  ".to_out.0.": ".proj_attn.",
}
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
  vector = added = labels = None
  if unet.vector == "table":
    labels = np.int64([20, 0, 350])
    vector = jax.nn.one_hot(labels, 1000)
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
    if labels is not None:
      more["class_labels"] = torch.tensor(labels)
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


def bert_states(pipe, texts):
  ids = pipe.tokenizer(
    texts,
    padding="max_length",
    max_length=77,
    truncation=True,
    return_tensors="pt",
  ).input_ids
  return pipe.bert(ids)[0]


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
  if name == "ldm_text":
    sides = (PROMPTS, [negative or ""] * 2)
    return tuple((bert_states(pipe, texts), None) for texts in sides)
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
  if name in CHANGES_IMAGES:
    pytest.skip("its pipeline begins with an image")
  first = opened.model.first_stage
  noise = np.asarray(draw(2, 8, 8, first.latent_channels))
  settings = Settings(
    height=8 * first.stride,
    width=8 * first.stride,
    steps=10,
    guidance=4.0,
    landing=opened.landing,
  )
  if name == "ldm":
    expected = by_hand(pipe, noise, [None])
  elif name == "ldm_text":
    (context, _), (away, _) = said_by_them(pipe, name, negative)
    expected = by_hand(pipe, noise, [context, away])
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
  found = drawn(opened, settings, request, noise)
  np.testing.assert_allclose(
    found, expected, atol=2e-3 * np.abs(expected).max()
  )


def drawn(opened, settings, request, noise):
  """Latents of a request by us."""
  positive, away = hear(opened, request, pytest.fail)
  studio = Studio(opened.model, opened.params, MeshShape().build())
  order = Order(len(noise), len(noise), noise=noise, output="latents")
  (found,) = studio.draw(settings, positive, away, order)
  return found


def by_hand(pipe, noise, contexts, scale=4.0):
  """DDIM with their U-Net and scheduler, where no pipeline gives latents."""
  pipe.scheduler.set_timesteps(10)
  xt = theirs(noise)
  with torch.no_grad():
    for t in pipe.scheduler.timesteps:
      told = [() if context is None else (context,) for context in contexts]
      answers = [pipe.unet(xt, t, *context).sample for context in told]
      answer = answers[-1] + scale * (answers[0] - answers[-1])
      xt = pipe.scheduler.step(answer, t, xt).prev_sample
  return ours(xt)


def test_a_folder_comes_back_bit_for_bit(family, tmp_path):
  name, pipe, _, opened = family
  back = tmp_path / "back"
  if name == "upscaler":
    with pytest.raises(ConfigError, match="noises the image"):
      saving.save_pretrained(opened.model, opened.params, str(back))
    assert not back.exists()
    return
  saving.save_pretrained(
    opened.model, opened.params, str(back), words=opened.words, side=32
  )
  again = type(pipe).from_pretrained(back)
  parts = ("unet", "vae", "vqvae", "bert", "text_encoder", "text_encoder_2")
  for part in parts:
    module = getattr(pipe, part, None)
    if module is None:
      continue
    before, after = module.state_dict(), getattr(again, part).state_dict()
    assert before.keys() == after.keys()
    for key in before:
      if key.startswith("to_logits."):
        continue  # LDM's head that predicts words, which nothing reads
      assert torch.equal(before[key], after[key]), (part, key)
  for key in ("force_zeros_for_empty_prompt", "requires_aesthetics_score"):
    assert again.config.get(key) == pipe.config.get(key)
  assert again.scheduler.config.prediction_type == (
    pipe.scheduler.config.prediction_type
  )
  if name != "ldm":
    tokenizer = again.tokenizer or again.tokenizer_2
    ids = (pipe.tokenizer or pipe.tokenizer_2)(PROMPTS).input_ids
    assert tokenizer(PROMPTS).input_ids == ids


def test_a_single_file_comes_back_bit_for_bit(family, tmp_path):
  _, _, folder, opened = family
  path = str(tmp_path / "model.safetensors")
  saving.save_single_file(opened.model, opened.params, path)
  given = loading.configs_of(str(folder))
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


def test_other_files_of_torch_are_the_same_model(family, tmp_path):
  """.bin by torch.save, attention named as of old, and a variant's halves."""
  name, pipe, folder, opened = family
  if name != "sd1":
    pytest.skip("files are files in every family")
  shutil.copytree(folder, tmp_path / "old")
  shutil.copytree(folder, tmp_path / "half")
  for part in ("unet", "vae", "text_encoder"):
    is_text = part == "text_encoder"
    state = dict(getattr(pipe, part).state_dict())
    if part == "vae":
      for now, once in OLD_NAMES.items():
        state = {key.replace(now, once): x for key, x in state.items()}
      assert any(".proj_attn." in key for key in state)
    (found,) = (tmp_path / "old" / part).glob("*.safetensors")
    found.unlink()
    stem = "pytorch_model" if is_text else "diffusion_pytorch_model"
    torch.save(state, tmp_path / "old" / part / f"{stem}.bin")
    (found,) = (tmp_path / "half" / part).glob("*.safetensors")
    found.unlink()
    half = copy.deepcopy(getattr(pipe, part)).half()
    half.save_pretrained(tmp_path / "half" / part, variant="fp16")
  same = open_model(str(tmp_path / "old"))
  jax.tree.map(np.testing.assert_array_equal, same.params, opened.params)
  halves = open_model(str(tmp_path / "half"), Reading(variant="fp16"))
  jax.tree.map(
    lambda ours, whole: np.testing.assert_array_equal(
      ours, np.float32(np.float16(whole))
    ),
    halves.params.unet,
    opened.params.unet,
  )


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


def test_a_seed_of_torch_is_their_picture(family, tmp_path):
  name, pipe, folder, _ = family
  if name not in ("sd1", "sd2", "sdxl"):
    pytest.skip("no pipeline of theirs begins with a seed's noise alone")
  flags = ["--rng=torch", "--seed=7", "--steps=4", "--guidance=3"]
  flags += [f"--prompt={PROMPTS[0]}", "--num=2", f"--out={tmp_path}"]
  assert sample.main([f"--model={folder}", "-H=32", "-W=48", *flags]) == 0
  expected = pipe(
    PROMPTS[0],
    num_images_per_prompt=2,
    generator=torch.Generator().manual_seed(7),
    num_inference_steps=4,
    guidance_scale=3.0,
    height=32,
    width=48,
  ).images
  for i, image in enumerate(expected):
    with Image.open(tmp_path / f"{i:05d}.png") as picture:
      found = np.asarray(picture, np.int32)
    assert found.std() > 5  # no empty picture agrees with another
    assert np.abs(found - np.asarray(image, np.int32)).max() <= 1


def test_skipped_blocks_are_those_that_diffusers_skips(family):
  name, pipe, _, opened = family
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
  skipped = skip_blocks(opened, 1)
  said, _ = hear(skipped, request_of([None] * 2), pytest.fail)
  said = jax.tree.map(jnp.asarray, said)
  found = skipped.model.condition(skipped.params, said.raw, said.is_null)
  np.testing.assert_allclose(found.context, ours(expected), atol=2e-5)


def test_class_conditional_ldm_from_a_single_file(tmp_path):
  torch.manual_seed(3)
  unet = torch_models.unet(in_channels=3, out_channels=3)
  table = torch.nn.Embedding(11, 32)  # ten classes, and none of them
  unet.save_pretrained(tmp_path / "unet")
  torch_models.ldm(tmp_path).vqvae.save_pretrained(tmp_path / "vae")
  (unet_of_ours, unet_params), (vq, vq_params) = (
    ldm_jax.from_pretrained(str(tmp_path), subfolder=name)
    for name in ("unet", "vae")
  )
  told = {"table": {"embedding": jnp.asarray(table.weight.detach().numpy())}}
  path = str(tmp_path / "cin.safetensors")
  saving.save_single_file(
    LatentDiffusion(vq, unet_of_ours, (ClassEmbedder(10, 32),)),
    Parameters(
      vq_params, jnp.float32(1), {"label": {"params": told}}, unet_params
    ),
    path,
  )
  assert read_tensors(path)["cond_stage_model.embedding.weight"].shape == (
    (11, 32)
  )
  torch_models.scheduler().save_pretrained(tmp_path / "scheduler")
  opened = open_model(path, Reading(config=str(tmp_path)))
  noise = np.asarray(draw(2, 8, 8, 3))
  settings = Settings(16, 16, 10, guidance=4.0, landing=opened.landing)
  request = Request([], [None] * 2, 7, 16, 16)
  found = drawn(opened, settings, request, noise)
  contexts = [table(torch.full((2, 1), label)) for label in (7, 10)]
  pipe = types.SimpleNamespace(unet=unet, scheduler=torch_models.scheduler())
  expected = by_hand(pipe, noise, contexts)
  np.testing.assert_allclose(
    found, expected, atol=2e-3 * np.abs(expected).max()
  )
