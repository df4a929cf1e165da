"""LoHa, LoKr, DoRA, Tucker's cores, differences: sums against float64."""

import json

import jax
import numpy as np
import pytest
from lora_files import TEXT_ENCODER, UNET, assembled, family, leaf
from single_files import SD1, TINY_CLIP

from ldm_jax.errors import NonFiniteWeights, WeightsError
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.weights.safetensors_files import write_safetensors

RNG = np.random.default_rng(11)
Q = "down_0_attention_0/block_0/attention1/q/kernel"
CONV = "mid_block_1/conv1/kernel"
KOHYA = {
  ours: f"lora_unet_{theirs.replace('.', '_')}"
  for ours, (theirs, _) in UNET.items()
}
R, ALPHA = 3, 6.0


def rand(*shape):
  return 0.2 * RNG.normal(size=shape).astype(np.float32)


def merged(tmp_path, tensors, metadata=None, loaded=None, **options):
  loaded = loaded or family("sd1")[0]
  path = tmp_path / "x.safetensors"
  tensors = {k: np.asarray(v) for k, v in tensors.items()}
  write_safetensors(path, tensors, metadata=metadata or {})
  return merge_lora(loaded, path, **options)


def foreign(ours, loaded=None, network="unet"):
  """A weight as torch has it, float64."""
  array = np.asarray(leaf(loaded or family("sd1")[0], (network, ours)))
  array = array.astype(np.float64)
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def wide(tensors):
  return {k: np.asarray(v).astype(np.float64) for k, v in tensors.items()}


def low_rank(o, i, *window):
  return {
    "lora_down.weight": rand(R, i, *window),
    "lora_up.weight": rand(o, R, *[1] * len(window)),
  }


def tucker(o, i, *window):
  return {
    "lora_down.weight": rand(R, i, 1, 1),
    "lora_up.weight": rand(o, R, 1, 1),
    "lora_mid.weight": rand(R, R, *window),
  }


def loha(o, i, *window):
  columns = i * int(np.prod(window))
  sizes = {"a": (o, R), "b": (R, columns)}
  return {f"hada_w{n}_{k}": rand(*sizes[k]) for n in (1, 2) for k in sizes}


def loha_tucker(o, i, *window):
  sizes = {"w1_a": (R, o), "w1_b": (R, i), "w2_a": (R, o), "w2_b": (R, i)}
  cores = {f"hada_t{n}": rand(R, R, *window) for n in (1, 2)}
  return {f"hada_{k}": rand(*size) for k, size in sizes.items()} | cores


def lokr(o, i, *window):
  columns = i // 8 * int(np.prod(window))
  return {
    "lokr_w1": rand(4, 8),
    "lokr_w2_a": rand(o // 4, R),
    "lokr_w2_b": rand(R, columns),
  }


def lokr_whole(o, i, *window):
  return {"lokr_w1": rand(2, 4), "lokr_w2": rand(o // 2, i // 4, *window)}


def lokr_products(o, i, *window):
  found = {"lokr_w1_a": rand(4, R), "lokr_w1_b": rand(R, 8)}
  return lokr(o, i, *window) | found | {"lokr_w1": None}


def lokr_tucker(o, i, *window):
  return {
    "lokr_w1": rand(4, 8),
    "lokr_t2": rand(R, R, *window),
    "lokr_w2_a": rand(R, o // 4),
    "lokr_w2_b": rand(R, i // 8),
  }


def core_product(t, a, b):
  """sum over p, q of t[p q] a[p o] b[q i]."""
  return np.tensordot(np.tensordot(a, t, (0, 0)), b, (1, 0)).transpose(
    0, 3, 1, 2
  )


def kron(first, second):
  """(F1 (x) F2)[a b, c d], by its definition."""
  rows, columns = first.shape
  found = first[:, None, :, None, None] * second.reshape(
    1, len(second), 1, second.shape[1], -1
  )
  return found.reshape(rows * len(second), columns * second.shape[1], -1)


def expected(t, shape, alpha=ALPHA):
  """The difference of each kind, from the papers."""
  t, scale = wide(t), alpha / R
  if "lora_mid.weight" in t:
    up, down = t["lora_up.weight"], t["lora_down.weight"]
    up, down = up[:, :, 0, 0].T, down[:, :, 0, 0]
    found = core_product(t["lora_mid.weight"], up, down)
  elif "lora_up.weight" in t:
    up, down = t["lora_up.weight"], t["lora_down.weight"]
    found = up.reshape(len(up), R) @ down.reshape(R, -1)
  elif "hada_t1" in t:
    one, two = (
      core_product(t[f"hada_t{n}"], t[f"hada_w{n}_a"], t[f"hada_w{n}_b"])
      for n in (1, 2)
    )
    found = one * two
  elif "hada_w1_a" in t:
    found = (t["hada_w1_a"] @ t["hada_w1_b"]) * (
      t["hada_w2_a"] @ t["hada_w2_b"]
    )
  else:
    first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_t2" in t:
      second = core_product(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    elif "lokr_w2" in t:
      second, scale = t["lokr_w2"], 1.0
    else:
      second = t["lokr_w2_a"] @ t["lokr_w2_b"]
      window = shape[2:]
      second = second.reshape(len(second), shape[1] // first.shape[1], *window)
      second = second.reshape(*second.shape[:2], -1)
    found = kron(first, second)
  return scale * found.reshape(shape)


KINDS = {
  "LoCon": low_rank,
  "LoHa": loha,
  "LoKr": lokr,
  "LoKr, whole": lokr_whole,
  "LoKr, products": lokr_products,
}
CORES = {"Tucker": tucker, "LoHa": loha_tucker, "LoKr": lokr_tucker}


def tensors_of(make, ours):
  found = make(*foreign(ours).shape)
  return {k: v for k, v in found.items() if v is not None}


def under(ours, tensors, alpha=ALPHA):
  named = {f"{KOHYA[ours]}.{k}": v for k, v in tensors.items()}
  return named | {f"{KOHYA[ours]}.alpha": np.float32(alpha)}


@pytest.mark.parametrize("ours", [Q, CONV])
@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_every_kind_are_those_of_the_papers(tmp_path, kind, ours):
  tensors = tensors_of(KINDS[kind], ours)
  before = foreign(ours)
  for scale in (1.0, -0.5):
    found = merged(tmp_path, under(ours, tensors), scale=scale)
    change = expected(tensors, before.shape)
    assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(
      foreign(ours, found), before + scale * change, atol=2e-5
    )


@pytest.mark.parametrize("kind", CORES)
def test_cores_of_convolutions_are_multiplied_in(tmp_path, kind):
  tensors, before = tensors_of(CORES[kind], CONV), foreign(CONV)
  found = merged(tmp_path, under(CONV, tensors))
  change = expected(tensors, before.shape)
  np.testing.assert_allclose(foreign(CONV, found), before + change, atol=2e-5)


def decomposed(weight, norms, axis):
  others = tuple(i for i in range(weight.ndim) if i != axis)
  length = np.sqrt((weight**2).sum(others, keepdims=True))
  return weight / length * norms.reshape(length.shape)


@pytest.mark.parametrize("ours", [Q, CONV])
@pytest.mark.parametrize("kind", ["LoCon", "LoHa", "LoKr"])
@pytest.mark.parametrize("axis", [0, 1])
def test_dora_gives_rows_or_columns_their_norms(tmp_path, kind, ours, axis):
  """Liu et al. 2024, eq. 5; LyCORIS has norms of inputs, by default."""
  tensors, before = tensors_of(KINDS[kind], ours), foreign(ours)
  shape = [1] * before.ndim
  shape[axis] = before.shape[axis]
  norms = 1 + np.abs(rand(*shape))
  file = under(ours, tensors | {"dora_scale": norms})
  wanted = decomposed(
    before + expected(tensors, before.shape), norms.astype(np.float64), axis
  )
  for scale in (0.0, 0.5, 1.0):
    found = foreign(ours, merged(tmp_path, file, scale=scale))
    line = before + scale * (wanted - before)
    np.testing.assert_allclose(found, line, atol=3e-5)


@pytest.mark.parametrize(
  "name", ["lora_magnitude_vector", "lora_magnitude_vector.default.weight"]
)
@pytest.mark.parametrize("ours", [Q, CONV])
def test_pefts_magnitudes_are_of_outputs(tmp_path, ours, name):
  """peft shapes those of convolutions [1 o 1 1]."""
  before = foreign(ours)
  tensors = low_rank(*before.shape)
  shape = (1, len(before), 1, 1) if before.ndim == 4 else (len(before),)
  norms = 1 + np.abs(rand(*shape))
  start = f"unet.{UNET[ours][0]}"
  file = {
    f"{start}.lora_A.default.weight": tensors["lora_down.weight"],
    f"{start}.lora_B.default.weight": tensors["lora_up.weight"],
    f"{start}.{name}": norms,
  }
  wanted = decomposed(
    before + expected(tensors, before.shape, R), norms.astype(np.float64), 0
  )
  np.testing.assert_allclose(
    foreign(ours, merged(tmp_path, file)), wanted, atol=3e-5
  )


def test_rows_of_zeros_stay_zeros_under_dora(tmp_path):
  """As in layers that start at zero; nothing is divided by their norms."""
  loaded, *_ = family("sd1")
  zeroed = jax.tree.map(np.zeros_like, loaded.params.unet)
  loaded = jax.tree.map(lambda x: x, loaded)
  import dataclasses

  loaded = dataclasses.replace(
    loaded, params=loaded.params.replace(unet=zeroed)
  )
  tensors = low_rank(64, 64)
  tensors["lora_up.weight"][:32] = 0
  file = under(Q, tensors | {"dora_scale": np.ones((64, 1), np.float32)})
  found = foreign(Q, merged(tmp_path, file, loaded=loaded))
  assert np.isfinite(found).all() and (found[:32] == 0).all()
  np.testing.assert_allclose((found[32:] ** 2).sum(1), 1, atol=1e-5)


def test_whole_differences_norms_and_biases_are_added(tmp_path):
  start = "lora_unet_mid_block_resnets_1_"
  norm, conv = leaf_of("mid_block_1/norm1"), leaf_of("mid_block_1/conv1")
  file = {
    f"{start}norm1.w_norm": rand(*norm["scale"].shape),
    f"{start}norm1.b_norm": rand(*norm["bias"].shape),
    f"{start}conv1.diff": rand(*foreign(CONV).shape),
    f"{start}conv1.diff_b": rand(*conv["bias"].shape),
  }
  found = merged(tmp_path, file, scale=0.5)
  for place, name in (
    ("norm1/scale", "norm1.w_norm"),
    ("norm1/bias", "norm1.b_norm"),
    ("conv1/bias", "conv1.diff_b"),
  ):
    np.testing.assert_allclose(
      leaf(found, ("unet", f"mid_block_1/{place}")),
      leaf_of(f"mid_block_1/{place}") + 0.5 * file[start + name],
      atol=1e-6,
    )
  change = 0.5 * file[f"{start}conv1.diff"]
  np.testing.assert_allclose(
    foreign(CONV, found), foreign(CONV) + change, atol=1e-6
  )


def leaf_of(place):
  return leaf(family("sd1")[0], ("unet", place))


def test_a_lora_may_change_biases(tmp_path):
  """peft's lora_bias is scaled as the product is; an extracted one's is not."""
  tensors, bias = low_rank(*foreign(CONV).shape), leaf_of("mid_block_1/conv1")
  bias, change = bias["bias"], rand(*leaf_of("mid_block_1/conv1")["bias"].shape)
  start = f"unet.{UNET[CONV][0]}"
  peft = {
    f"{start}.lora_A.weight": tensors["lora_down.weight"],
    f"{start}.lora_B.weight": tensors["lora_up.weight"],
    f"{start}.lora_B.bias": change,
  }
  config = {"unet.lora_alpha": 6, "unet.r": R, "unet.lora_bias": True}
  metadata = {"lora_adapter_metadata": json.dumps(config)}
  place = ("unet", "mid_block_1/conv1/bias")
  found = leaf(merged(tmp_path, peft, metadata), place)
  np.testing.assert_allclose(found, bias + 2 * change, atol=1e-6)
  file = under(CONV, tensors | {"diff_b": change})
  found = leaf(merged(tmp_path, file), place)
  np.testing.assert_allclose(found, bias + change, atol=1e-6)


def test_pefts_whole_modules_and_biases_replace(tmp_path):
  """modules_to_save and bias="lora_only"; half of one is half of the way."""
  tensors = low_rank(*foreign(CONV).shape)
  bias = leaf_of("mid_block_1/conv1/bias")
  value, whole = rand(*bias.shape), rand(*foreign("conv_out/kernel").shape)
  start = f"unet.{UNET[CONV][0]}"
  file = {
    f"{start}.lora_A.weight": tensors["lora_down.weight"],
    f"{start}.lora_B.weight": tensors["lora_up.weight"],
    f"{start}.base_layer.bias": value,
    "unet.conv_out.weight": whole,
  }
  config = {"bias": "lora_only", "modules_to_save": ["conv_out"]}
  metadata = {"lora_adapter_metadata": json.dumps(config)}
  found = merged(tmp_path, file, metadata, scale=0.5)
  np.testing.assert_allclose(
    leaf(found, ("unet", "mid_block_1/conv1/bias")),
    (bias + value) / 2,
    atol=1e-6,
  )
  np.testing.assert_allclose(
    foreign("conv_out/kernel", found),
    (foreign("conv_out/kernel") + whole) / 2,
    atol=1e-6,
  )
  # A checkpoint is no LoRA: without a config that says so nothing is replaced.
  with pytest.raises(WeightsError, match="4 of 4 tensors do not fit"):
    merged(tmp_path, file)


@pytest.mark.parametrize("kind", ["LoCon", "LoHa", "LoKr, whole", "diff"])
def test_four_channels_are_merged_into_nine(tmp_path, kind):
  """A LoRA for text to image on an inpainting U-Net: the latents' channels."""
  loaded = assembled(SD1, (9, 64), (TINY_CLIP,))
  before = foreign("conv_in/kernel", loaded)
  shape = (len(before), 4, 3, 3)
  if kind == "diff":
    tensors = {"diff": rand(*shape)}
    change = tensors["diff"].astype(np.float64)
    file = {f"lora_unet_conv_in.{k}": v for k, v in tensors.items()}
  else:
    tensors = KINDS[kind](*shape)
    change = expected(tensors, shape)
    file = under("conv_in/kernel", tensors)
  assert before.shape[1] == 9
  found = foreign("conv_in/kernel", merged(tmp_path, file, loaded=loaded))
  np.testing.assert_allclose(found[:, :4], before[:, :4] + change, atol=2e-5)
  np.testing.assert_array_equal(found[:, 4:], before[:, 4:])


def test_nine_channels_are_not_merged_into_four(tmp_path):
  file = under("conv_in/kernel", low_rank(64, 9, 3, 3))
  with pytest.raises(WeightsError, match="3 of 3 tensors do not fit"):
    merged(tmp_path, file)


TEXT = "text_model.encoder.layers.1.mlp.fc1"
SPELLINGS = {
  "kohya": (f"lora_te_{TEXT.replace('.', '_')}", "lora_down", "lora_up"),
  "SDXL's number": (
    f"lora_te1_{TEXT.replace('.', '_')}",
    "lora_down",
    "lora_up",
  ),
  "ComfyUI": (
    f"text_encoders.clip_l.transformer.{TEXT}",
    "lora_down",
    "lora_up",
  ),
  "ComfyUI, bare": (f"text_encoders.clip_l.{TEXT}", "lora_A", "lora_B"),
  "an adapter's name": (
    f"text_encoder.{TEXT}",
    "lora_A.my_style",
    "lora_B.my_style",
  ),
  "diffusers' number": (
    f"text_encoder.{TEXT}",
    "lora_A.default_0",
    "lora_B.default_0",
  ),
  "transformers 5": (
    f"text_encoder.{TEXT.removeprefix('text_model.')}",
    "lora_A",
    "lora_B",
  ),
  "peft's folder": (f"base_model.model.{TEXT}", "lora_A", "lora_B"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_text_encoders_under_every_name(tmp_path, name):
  assert "block_1/up/kernel" in TEXT_ENCODER
  module, down, up = SPELLINGS[name]
  before = foreign("block_1/up/kernel", network="text_encoder")
  tensors = low_rank(*before.shape)
  file = {
    f"{module}.{down}.weight": tensors["lora_down.weight"],
    f"{module}.{up}.weight": tensors["lora_up.weight"],
  }
  found = foreign(
    "block_1/up/kernel", merged(tmp_path, file), network="text_encoder"
  )
  change = expected(tensors, before.shape, R)
  np.testing.assert_allclose(found, before + change, atol=2e-5)


@pytest.mark.parametrize(
  "start",
  [
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out",
    "unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0."
    "attn2.to_out.0",
  ],
)
def test_modules_of_the_unet_under_other_programs_names(tmp_path, start):
  ours = "down_0_attention_0/block_0/attention2/out/kernel"
  before = foreign(ours)
  tensors = low_rank(*before.shape)
  found = merged(tmp_path, {f"{start}.{k}": v for k, v in tensors.items()})
  change = expected(tensors, before.shape, R)
  np.testing.assert_allclose(foreign(ours, found), before + change, atol=2e-5)


def test_a_file_of_two_adapters_is_refused(tmp_path):
  start = f"unet.{UNET[Q][0]}"
  file = {
    f"{start}.lora_{half}.{name}.weight": rand(64, 64)
    for half in "AB"
    for name in ("one", "two")
  }
  with pytest.raises(WeightsError, match=r"holds 2 adapters \(one, two\)"):
    merged(tmp_path, file)


MALFORMED = {
  "a factor is missing": ("LoHa", {"hada_w2_b": None}),
  "one core": ("LoHa", {"hada_t1": rand(R, R, 3, 3)}),
  "two ranks": ("LoHa", {"hada_w2_a": rand(64, 2), "hada_w2_b": rand(2, 64)}),
  "a factor twice": ("LoKr", {"lokr_w2": rand(16, 8)}),
  "another size": ("LoKr", {"lokr_w1": rand(4, 4)}),
  "no second": ("LoKr", {"lokr_w2_a": None, "lokr_w2_b": None}),
  "norms of another size": ("LoCon", {"dora_scale": rand(5, 1)}),
  "two kinds": ("LoCon", loha(64, 64)),
  "a difference too": ("LoCon", {"diff": rand(64, 64)}),
  "a bias that is not there": ("LoCon", {"diff_b": rand(64)}),
  "whole numbers": ("LoKr", {"lokr_w1": np.ones((4, 8), np.int8)}),
  "complex numbers": ("LoKr", {"lokr_w1": np.ones((4, 8), np.complex64)}),
  "an unknown name": ("LoCon", {"scalar": rand(1)}),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_tensors_that_do_not_fit_each_other_are_named(tmp_path, case):
  kind, changes = MALFORMED[case]
  tensors = KINDS[kind](64, 64) | changes
  file = under(Q, {k: v for k, v in tensors.items() if v is not None})
  with pytest.raises(WeightsError, match="tensors do not fit") as caught:
    merged(tmp_path, file)
  assert "\n" not in str(caught.value)
  culprit = next(iter(changes))
  assert (
    f"{KOHYA[Q]}.{culprit}" in str(caught.value) or changes[culprit] is None
  )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
  "kind, name",
  [
    ("LoCon", "lora_up.weight"),
    ("LoHa", "hada_w2_a"),
    ("LoKr", "lokr_w1"),
    ("LoCon", "dora_scale"),
    ("LoCon", "alpha"),
  ],
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_that_are_not_finite_are_refused_by_name(
  tmp_path, kind, name, value, dtype
):
  import ml_dtypes

  file = under(Q, KINDS[kind](64, 64) | {"dora_scale": np.ones((64, 1))})
  array = np.array(file[f"{KOHYA[Q]}.{name}"]).astype(np.float32)
  array.reshape(-1)[-1:] = value
  to = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
  file[f"{KOHYA[Q]}.{name}"] = array.astype(to)
  with pytest.raises(NonFiniteWeights) as caught:
    merged(tmp_path, file)
  assert f"x.safetensors: {KOHYA[Q]}.{name} has 1 values of" in str(
    caught.value
  )


def test_a_sum_too_large_for_its_format_is_refused(tmp_path):
  import dataclasses

  loaded, *_ = family("sd1")
  half = jax.tree.map(lambda x: x.astype(np.float16), loaded.params.unet)
  loaded = dataclasses.replace(loaded, params=loaded.params.replace(unet=half))
  file = under(Q, low_rank(64, 64))
  with pytest.raises(NonFiniteWeights, match="too large for float16; try a"):
    merged(tmp_path, file, loaded=loaded, scale=1e6)
  merged(tmp_path, file, loaded=loaded, scale=1.0)
