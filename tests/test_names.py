"""Conversion by name tables is exact, or an error names the cause."""

import functools

import jax
import numpy as np
import pytest
from networks import (
  autoencoder_shapes,
  class_shapes,
  foreign,
  random_params,
  random_tensors,
  text_shapes,
  unet_shapes,
)
from published_networks import plain, transformer

from ldm_jax.errors import WeightsError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import UNet
from ldm_jax.weights.naming.convert import convert, revert, shapes
from ldm_jax.weights.naming.parameter_names import (
  NAMING_SCHEMES,
  Geometry,
  modern_names,
  name_table,
)


def vae(*multipliers, **options):
  trunk = ConvStack(8, multipliers, groups=4, **options)
  return autoencoder_shapes(Autoencoder(trunk, 4))


def small_unet(plan, multipliers=(1, 2), *, channels=8, **options):
  unet = UNet(4, channels, multipliers, 1, plan, groups=4, **options)
  has_context = plan.kind == "transformer"
  return (
    "unet",
    unet_shapes(unet, 4, 6 if has_context else None, unet.vector and 5),
    Geometry(plan.heads, plan.head_width),
  )


SMALL = {
  "convolutions": lambda: small_unet(transformer((1, 0, 2), 3, 2), (1, 2, 2)),
  "linear": lambda: small_unet(
    transformer((0, 1), 2, None, 4, True), vector="mlp"
  ),
  "cross only": lambda: small_unet(
    transformer((0, 1), heads=2, cross_only=(False, True)), vector="table"
  ),
  "plain, heads": lambda: small_unet(plain((1, 1), heads=2)),
  "plain, width": lambda: small_unet(
    plain((0, 1), width=4), modulation="scale_shift", resampling="block"
  ),
  "kl": lambda: ("autoencoder", vae(1, 2, 2), Geometry()),
  "vq": lambda: (
    "autoencoder",
    autoencoder_shapes(
      Autoencoder(
        ConvStack(8, (1, 2), 1, (1,), False, groups=4), 3, VectorQuantizer(7, 3)
      )
    ),
    Geometry(),
  ),
  "text": lambda: (
    "text",
    text_shapes(TextEncoder(11, 8, 2, 2, 3, length=5)),
    Geometry(),
  ),
  "classes": lambda: ("classes", class_shapes(5, 3), Geometry()),
}


@functools.cache
def small(name):
  return SMALL[name]()


def clip_shapes(depth=2, projection=5):
  clip = pytest.importorskip("ldm_jax.nn.encoders.clip_text")
  return text_shapes(
    clip.ClipText(11, 8, depth, 2, length=7, projection=projection)
  )


def assert_equal(one, other):
  assert shapes(one) == shapes(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_inverse(names, sizes):
  params = random_params(sizes)
  tensors = revert(names, params)
  assert shapes(tensors) == foreign(names)
  assert_equal(convert(names, tensors), params)
  tensors = random_tensors(foreign(names), seed=1)
  back = revert(names, convert(names, tensors))
  assert back.keys() == tensors.keys()
  assert_equal(back, tensors)


NO_FILES = [("text", "flax"), ("classes", "flax"), ("classes", "diffusers")]


@pytest.mark.parametrize(
  "name, scheme",
  [(n, d) for n in SMALL for d in NAMING_SCHEMES if (n, d) not in NO_FILES],
)
def test_reverting_and_converting_keep_every_bit(name, scheme):
  network, sizes, geometry = small(name)
  assert_inverse(name_table(network, scheme, sizes, geometry), sizes)


@pytest.mark.parametrize("scheme", NAMING_SCHEMES)
@pytest.mark.parametrize("network", ["clip", "open_clip"])
@pytest.mark.parametrize("projection", [None, 5])
def test_reverting_and_converting_keep_every_bit_of_a_text_encoder(
  network, scheme, projection
):
  sizes = clip_shapes(projection=projection)
  assert_inverse(name_table(network, scheme, sizes), sizes)


@pytest.mark.parametrize(
  "name, heads", [("plain, heads", 2), ("plain, width", 4)]
)
def test_stacked_projections_split_into_those_of_every_head(name, heads):
  """LDM's AttentionBlock: the outputs are [heads, (q, k, v), width]."""
  network, sizes, geometry = small(name)
  names = name_table(network, "compvis", sizes, geometry)
  tensors = random_tensors(foreign(names))
  ours = convert(names, tensors)["mid_attention"]
  x = np.random.default_rng(2).normal(size=16).astype(np.float32)
  weight = tensors["middle_block.1.qkv.weight"][:, :, 0]
  theirs = weight @ x + tensors["middle_block.1.qkv.bias"]
  for j, letter in enumerate("qkv"):
    layer = ours[letter]
    np.testing.assert_allclose(
      (x @ layer["kernel"] + layer["bias"]).reshape(heads, -1),
      theirs.reshape(heads, 3, -1)[:, j],
      rtol=1e-5,
      atol=1e-5,
    )


def test_the_stacked_projections_of_open_clip_follow_each_other():
  """torch.nn.MultiheadAttention: q of every head, then k, then v."""
  names = name_table("open_clip", "compvis", clip_shapes())
  tensors = random_tensors(foreign(names))
  layers = convert(names, tensors)["block_1"]["attention"]
  x = np.random.default_rng(2).normal(size=8).astype(np.float32)
  place = "transformer.resblocks.1.attn.in_proj"
  theirs = tensors[f"{place}_weight"] @ x + tensors[f"{place}_bias"]
  ours = [x @ layers[j]["kernel"] + layers[j]["bias"] for j in "qkv"]
  np.testing.assert_allclose(np.concatenate(ours), theirs, rtol=1e-5, atol=1e-5)


def test_the_projection_of_open_clip_is_not_transposed():
  names = name_table("open_clip", "compvis", clip_shapes())
  tensors = random_tensors(foreign(names))
  np.testing.assert_array_equal(
    convert(names, tensors)["projection"]["kernel"], tensors["text_projection"]
  )
  assert tensors["text_projection"].shape == (8, 5)


def test_the_last_block_of_sd2s_text_encoder_is_ignored():
  """Its file has 24 blocks and a projection, of which SD 2 uses 23."""
  names = name_table("open_clip", "compvis", clip_shapes(2, None))
  whole = random_tensors(
    foreign(name_table("open_clip", "compvis", clip_shapes(3, 5)))
  )
  whole["logit_scale"] = np.ones(())
  params = convert(names, whole)
  assert shapes(params) == clip_shapes(2, None)
  longer = random_tensors(
    foreign(name_table("open_clip", "compvis", clip_shapes(4, 5)))
  )
  with pytest.raises(WeightsError, match=r"resblocks\.3\.attn\.in_proj_bias"):
    convert(names, longer)


def test_buffers_of_transformers_are_ignored():
  names = name_table("clip", "diffusers", clip_shapes())
  tensors = random_tensors(foreign(names))
  params = convert(names, tensors)
  tensors["embeddings.position_ids"] = np.arange(7)[None]
  assert_equal(convert(names, tensors), params)


def test_the_logits_of_ldms_text_encoder_are_ignored():
  names = name_table("text", "compvis", small("text")[1])
  tensors = random_tensors(foreign(names))
  params = convert(names, tensors)
  tensors["transformer.to_logits.weight"] = np.ones((11, 8))
  assert_equal(convert(names, tensors), params)


@pytest.mark.parametrize("scheme", ["diffusers", "compvis"])
@pytest.mark.parametrize("name", ["linear", "kl"])
def test_missing_unexpected_and_misshapen_tensors_are_named(name, scheme):
  network, sizes, geometry = small(name)
  names = name_table(network, scheme, sizes, geometry)
  tensors = random_tensors(foreign(names))
  row = names.rows[len(sizes) // 2]
  lost = {k: v for k, v in tensors.items() if k != row.foreign_name}
  with pytest.raises(WeightsError) as error:
    convert(names, lost)
  assert f"missing {row.foreign_name} {row.foreign_shape()};" in str(
    error.value
  )
  with pytest.raises(WeightsError, match=r"unexpected scales \(2, 3\)$"):
    convert(names, {**tensors, "scales": np.ones((2, 3))})
  with pytest.raises(WeightsError) as error:
    convert(names, {**tensors, row.foreign_name: np.ones((5, 7))})
  assert f"{row.foreign_name} has shape (5, 7)" in str(error.value)
  assert f"for {row.path} {row.shape}" in str(error.value)
  params = random_params(sizes)
  params["scales"] = np.ones((2, 3))
  with pytest.raises(WeightsError, match=r"unexpected scales \(2, 3\)$"):
    revert(names, params)


def test_the_error_lists_parameters_without_a_name():
  sizes = {**small("kl")[1], "pooled/scale": (8,)}
  with pytest.raises(WeightsError, match=r"no name for: pooled/scale \(8,\)$"):
    name_table("autoencoder", "compvis", sizes)
  with pytest.raises(WeightsError, match=r"table/embedding \(6, 3\)"):
    name_table("classes", "diffusers", small("classes")[1])


def test_a_parameter_of_another_rank_than_its_layouts_is_refused():
  sizes = {**small("kl")[1], "encoder/conv_in/kernel": (3, 8)}
  with pytest.raises(WeightsError, match=r"encoder/conv_in/kernel has shape"):
    name_table("autoencoder", "compvis", sizes)


def test_a_missing_part_of_a_stacked_tensor_is_refused():
  network, sizes, geometry = small("plain, heads")
  sizes = {k: v for k, v in sizes.items() if k != "mid_attention/k/kernel"}
  with pytest.raises(WeightsError, match=r"qkv\.weight is stacked of 3"):
    name_table(network, "compvis", sizes, geometry)


def test_stacked_projections_need_the_number_of_heads():
  network, sizes, _ = small("plain, heads")
  name_table(network, "diffusers", sizes)
  with pytest.raises(ValueError, match="give the Geometry"):
    name_table(network, "compvis", sizes)
  with pytest.raises(ValueError, match="heads=3"):
    name_table(network, "compvis", sizes, Geometry(3))
  with pytest.raises(ValueError, match="set one of heads"):
    Geometry(2, 4)


@pytest.mark.parametrize(
  "network, scheme, words",
  [
    ("vae", "diffusers", "autoencoder"),
    ("unet", "kohya", "compvis"),
    ("text", "flax", "no Flax files"),
  ],
)
def test_unknown_networks_and_schemes_are_refused(network, scheme, words):
  with pytest.raises(ValueError, match=words):
    name_table(network, scheme, {})


def test_attention_of_old_diffusers_gets_its_present_names():
  names = name_table("autoencoder", "diffusers", small("vq")[1])
  tensors = random_tensors(foreign(names))
  old = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
  }
  aged = {}
  for name, tensor in tensors.items():
    for word, spelling in old.items():
      name = name.replace(f".{word}.", f".{spelling}.")
    aged[name] = tensor
  assert aged.keys() != tensors.keys()
  assert modern_names(aged).keys() == tensors.keys()
  for name, tensor in modern_names(aged).items():
    assert tensor is tensors[name]
  assert modern_names(tensors).keys() == tensors.keys()
