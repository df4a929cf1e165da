"""T5 compared with transformers, and SD3's and FLUX's prompts with diffusers.

All weights are random and small.
"""

import types

import clip_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_files

import ldm_jax
from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.encoders.t5 import relative_buckets
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.conditioner_variables import conditioner_variables
from ldm_jax.pretrained.networks import load
from ldm_jax.pretrained.text.families import (
  TextEncoders,
  flux_conditioners,
  sd3_conditioners,
)
from ldm_jax.sampling.conditioning import ConditionInputs, encode_conditions

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

PROMPTS = ["a red fox in the snow", "the cat"]
NEGATIVES = ["", "a painting of the snow"]
VECTOR = 24


def randomized(model):
  for name, parameter in model.named_parameters():
    is_scale = "norm" in name and name.endswith("weight")
    size = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
    random = torch.randn(parameter.shape) * size + float(is_scale)
    parameter.data = random * (3.0 if "q.weight" in name else 1.0)
  return model.eval()


def t5_encoder(**changes):
  config = transformers.T5Config(**t5_files.CONFIG | changes)
  return randomized(transformers.T5EncoderModel(config))


def clip_encoder(width, activation, projection=None):
  config = transformers.CLIPTextConfig(
    vocab_size=250,
    hidden_size=width,
    intermediate_size=2 * width,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=77,
    hidden_act=activation,
    eos_token_id=2,  # of configs that pool at the largest id
    projection_dim=projection or width,
  )
  kind = transformers.CLIPTextModel
  if projection:
    kind = transformers.CLIPTextModelWithProjection
  return randomized(kind(config))


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("length", [9, 77])
def test_the_encoder_is_that_of_transformers(length, is_masked, tmp_path):
  torch.manual_seed(0)
  theirs = t5_encoder()
  theirs.save_pretrained(tmp_path)
  ours, params = ldm_jax.from_pretrained(str(tmp_path))
  ids = torch.randint(2, 160, (3, length))
  ids[1, 5:], ids[2, 3:] = 0, 0
  mask = (ids != 0) if is_masked else None
  with torch.no_grad():
    single = theirs(ids, attention_mask=mask)[0].numpy()
    exact = theirs.double()(ids, attention_mask=mask)[0].numpy()
  own = None if mask is None else jnp.asarray(mask.numpy())
  found = np.asarray(jax.jit(ours.apply)(params, jnp.asarray(ids), own))
  assert_near(found, single, exact)


def test_every_distance_is_in_the_class_of_transformers():
  kind = transformers.models.t5.modeling_t5.T5Attention
  for length, buckets, distance in ((600, 32, 128), (300, 8, 20)):
    places = torch.arange(length)
    theirs = kind._relative_position_bucket(
      places[None] - places[:, None], True, buckets, distance
    )
    ours = relative_buckets(length, buckets, distance)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.fixture(scope="module")
def tokenizer_folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizers")
  clip_tokenizer.tokenizer(folder / "raw").save_pretrained(folder / "1")
  second = clip_tokenizer.tokenizer(folder / "raw", pad="!")
  second.save_pretrained(folder / "2")
  # As transformers reads them from a spiece.model.
  sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
  t5 = transformers.T5Tokenizer(vocab=t5_files.PIECES + sentinels)
  t5.save_pretrained(folder / "3")
  return folder


def test_the_tokenizer_has_the_ids_of_transformers(tokenizer_folders, tmp_path):
  theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_folders / "3")
  ours = tokenizers.load(tokenizer_folders / "3", 20)
  bare = tokenizers.load(t5_files.tokenizer_folder(tmp_path), 20)
  texts = [
    *PROMPTS,
    "",
    "  The  Cat,\n in snows ",
    "paintings<extra_id_3> of foxes",
    " ".join(["a red fox in the snow"] * 4),
  ]
  ids = theirs(texts, padding="max_length", max_length=20, truncation=True)
  np.testing.assert_array_equal(ours.encode(texts), ids["input_ids"])
  np.testing.assert_array_equal(bare.encode(texts), ids["input_ids"])
  ours.save(tmp_path / "saved")
  again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
  saved = again(texts, padding="max_length", max_length=20, truncation=True)
  np.testing.assert_array_equal(saved["input_ids"], ids["input_ids"])


def loaded_here(folder, tokenizer_folders, join, encoders, t5_tokenizer):
  """The model of the text encoders in a folder, by `join`."""
  networks = {name: load(open_network(str(folder / name))) for name in encoders}
  modules = {name: module for name, (module, _) in networks.items()}
  t5_name = next((n for n in modules if "T5" in type(modules[n]).__name__), "")
  t5 = modules.pop(t5_name, None)
  syntaxes = []
  for i, _ in enumerate(modules, 1):
    own = tokenizers.load(tokenizer_folders / f"{i}", 77)
    syntaxes.append(PromptSyntax(own, own.backend.pad_token_id))
  special = None
  if syntaxes:
    own = syntaxes[0].tokenizer.backend
    special = own.bos_token_id, own.eos_token_id
  conditioners = join(
    TextEncoders(
      tuple(modules.values()),
      tuple(syntax.padding for syntax in syntaxes),
      t5,
      special,
      t5_tokenizer,
    )
  )
  params = conditioner_variables(conditioners, networks)
  model = LatentDiffusion(conditioners=tuple(conditioners))
  return LoadedModel(
    model,
    Parameters(None, 1.0, params, None),
    ClipPrompts(tuple(syntaxes), 1) if syntaxes else None,
    height=8,
    width=8,
    t5_tokenizer=t5_tokenizer,
  )


def conditions(loaded, prompts, negatives):
  inputs = ConditionInputs(prompts, negatives, None, 8, 8)
  sides = encode_conditions(loaded, inputs)
  condition = jax.jit(loaded.model.condition)
  return [condition(loaded.params, side.raw, side.is_null) for side in sides]


def assert_near(ours, single, exact):
  """As near to torch's float64 as 20 times its own float32."""
  ours, single, exact = map(np.asarray, (ours, single, exact))
  assert ours.shape == exact.shape
  allowed = 20 * np.abs(single - exact).max() + 1e-5 * np.abs(exact).max()
  assert np.abs(ours - exact).max() <= allowed


def in_both_formats(pipe, **options):
  """The prompts' encodings in float32, and of the same weights in float64."""
  names = ("text_encoder", "text_encoder_2", "text_encoder_3")
  parts = [part for n in names if (part := getattr(pipe, n, None)) is not None]
  with torch.no_grad():
    single = pipe.encode_prompt(device="cpu", **options)
    for part in parts:
      part.double()
    exact = pipe.encode_prompt(device="cpu", **options)
    for part in parts:
      part.float()
  return list(zip(single, exact, strict=True))


@pytest.mark.parametrize("has_t5", [True, False])
def test_prompts_of_sd3(has_t5, tokenizer_folders, tmp_path):
  torch.manual_seed(1)
  encoders = {
    "text_encoder": clip_encoder(8, "quick_gelu", 10),
    "text_encoder_2": clip_encoder(12, "gelu", 14),
    "text_encoder_3": t5_encoder() if has_t5 else None,
  }
  names = [name for name, each in encoders.items() if each is not None]
  for name in names:
    encoders[name].save_pretrained(tmp_path / name)
  load_tokenizer = transformers.AutoTokenizer.from_pretrained
  pipe = diffusers.StableDiffusion3Pipeline(
    transformer=None,
    scheduler=None,
    vae=None,
    **encoders,
    tokenizer=load_tokenizer(tokenizer_folders / "1"),
    tokenizer_2=load_tokenizer(tokenizer_folders / "2"),
    tokenizer_3=load_tokenizer(tokenizer_folders / "3"),
  )
  config = types.SimpleNamespace(joint_attention_dim=32, patch_size=2)
  pipe.transformer = types.SimpleNamespace(config=config)
  long = [" ".join(["a red fox in the snow"] * 30), PROMPTS[1]]
  for prompts in (PROMPTS, long):
    others = {"prompt_2": None, "prompt_3": None}
    theirs = in_both_formats(
      pipe, prompt=prompts, negative_prompt=NEGATIVES, **others
    )
    t5 = tokenizers.load(tokenizer_folders / "3", 256) if has_t5 else None
    join = lambda each: sd3_conditioners(each, 32, VECTOR)
    loaded = loaded_here(tmp_path, tokenizer_folders, join, names, t5)
    positive, negative = conditions(loaded, prompts, [None, NEGATIVES[1]])
    assert positive.context.shape == (2, 77 + 256, 32)
    assert_near(positive.context, *theirs[0])
    assert_near(negative.context, *theirs[1])
    assert_near(positive.vector, *theirs[2])
    assert_near(negative.vector, *theirs[3])


def test_prompts_of_flux(tokenizer_folders, tmp_path):
  torch.manual_seed(2)
  encoders = {
    "text_encoder": clip_encoder(VECTOR, "quick_gelu"),
    "text_encoder_2": t5_encoder(),
  }
  for name, each in encoders.items():
    each.save_pretrained(tmp_path / name)
  load_tokenizer = transformers.AutoTokenizer.from_pretrained
  pipe = diffusers.FluxPipeline(
    transformer=None,
    scheduler=None,
    vae=None,
    **encoders,
    tokenizer=load_tokenizer(tokenizer_folders / "1"),
    tokenizer_2=load_tokenizer(tokenizer_folders / "3"),
  )
  long = [" ".join(["a red fox in the snow"] * 30), PROMPTS[1]]
  for prompts, length in ((PROMPTS, 512), (long, 128)):
    context, vector, _ = in_both_formats(
      pipe, prompt=prompts, prompt_2=None, max_sequence_length=length
    )
    t5 = tokenizers.load(tokenizer_folders / "3", length)
    join = lambda each, n=length: flux_conditioners(each, 32, VECTOR, n)
    loaded = loaded_here(tmp_path, tokenizer_folders, join, encoders, t5)
    positive, _ = conditions(loaded, prompts, [None, None])
    assert_near(positive.context, *context)
    assert_near(positive.vector, *vector)
