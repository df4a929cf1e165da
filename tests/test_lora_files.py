"""LoRAs of every form, compared with numpy, and errors."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import ALPHA, FORMS, RANK, factors, family, file_of, leaf
from torch_files import tensor, write

from ldm_jax.cli.sample import parser
from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.lora.merge import (
  apply_loras,
  load_lora,
  merge_lora,
  split_scale,
)
from ldm_jax.pretrained.lora.module_names import modules
from ldm_jax.weights.naming.convert import shapes
from ldm_jax.weights.safetensors_files import write_safetensors


def merged(tmp_path, loaded, file, **options):
  tensors, metadata = file if isinstance(file, tuple) else (file, {})
  path = tmp_path / "x.safetensors"
  write_safetensors(path, tensors, metadata=metadata)
  return merge_lora(loaded, path, **options)


def summed(weight, down, up, factor):
  """The paper's sum, in the layout of ldm_jax."""
  i = "rihw,or->hwio" if down.ndim == 4 else "ri,or->io"
  up = up.reshape(len(up), -1)
  change = np.einsum(i, down.astype(np.float64), up.astype(np.float64))
  return weight + factor * change


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_every_form_of_file_gives_the_same_sums(tmp_path, name):
  loaded, *_ = family(name)
  whole = [merged(tmp_path, loaded, file_of(name, form)) for form in FORMS]
  tensors, _ = file_of(name, "processors")
  write("zip", tmp_path / "x.bin", {k: tensor(v) for k, v in tensors.items()})
  whole.append(merge_lora(loaded, tmp_path / "x.bin"))
  for place, (down, up) in factors(name).items():
    sums = [leaf(model, place) for model in whole]
    expected = summed(leaf(loaded, place), down, up, ALPHA / RANK)
    np.testing.assert_allclose(sums[0], expected, atol=2e-5)
    for other in sums[1:]:
      np.testing.assert_array_equal(sums[0], other)


def test_only_what_is_named_changes(tmp_path):
  loaded, *_ = family("sd1")
  before = jax.tree.map(np.copy, loaded.params)
  changed = merged(tmp_path, loaded, file_of("sd1", "kohya"))
  jax.tree.map(np.testing.assert_array_equal, loaded.params, before)
  pairs = zip(
    jax.tree.leaves(loaded.params), jax.tree.leaves(changed.params), strict=True
  )
  moved = [a is not b for a, b in pairs]
  assert sum(moved) == len(factors("sd1"))
  assert changed.model is loaded.model


def test_scales_add_up_and_scale_0_changes_nothing(tmp_path):
  loaded, *_ = family("sd1")
  file = file_of("sd1", "kohya")
  still = merged(tmp_path, loaded, file, scale=0.0)
  jax.tree.map(np.testing.assert_array_equal, still.params, loaded.params)
  there = merged(tmp_path, loaded, file, scale=0.75)
  back = merged(tmp_path, there, file, scale=-0.75)
  close = functools.partial(np.testing.assert_allclose, atol=2e-5)
  jax.tree.map(close, back.params, loaded.params)
  for place, (down, up) in factors("sd1").items():
    expected = summed(leaf(loaded, place), down, up, 0.75 * ALPHA / RANK)
    close(leaf(there, place), expected)


PLACE = "unet", "down_0_attention_0/block_0/attention1/q/kernel"
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONFIGS = {
  "alpha": ({"unet.lora_alpha": 6}, 2.0),
  "nothing": ({}, 1.0),
  "another network's": ({"text_encoder.lora_alpha": 6}, 1.0),
  "of a lone network": ({"lora_alpha": 6}, 2.0),
  "its own": ({"unet.lora_alpha": 6, "unet.alpha_pattern": {Q: 12}}, 4.0),
  "another's": (
    {"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn2.to_q": 12}},
    2.0,
  ),
  "an expression": (
    {"unet.lora_alpha": 6, "unet.alpha_pattern": {r"down.*1\.to_[qk]": 12}},
    4.0,
  ),
  "an expression of the whole": (
    {"unet.lora_alpha": 6, "unet.alpha_pattern": {"^down_blocks.0.*to_q": 12}},
    4.0,
  ),
  "an expression of the middle": (
    {"unet.lora_alpha": 6, "unet.alpha_pattern": {"^attn1": 3, "attn1": 12}},
    2.0,
  ),
  "the first of two": ({"unet.alpha_pattern": {"to_k|to_q": 6, Q: 12}}, 2.0),
  "stabilised": (
    {"unet.lora_alpha": 6, "unet.use_rslora": True},
    6 / math.sqrt(3),
  ),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("in_folder", [False, True])
def test_alpha_may_be_in_metadata(tmp_path, case, in_folder):
  config, factor = CONFIGS[case]
  loaded, *_ = family("sd1")
  down, up = factors("sd1")[PLACE]
  start = f"unet.{Q}.lora_"
  file = {f"{start}A.weight": down, f"{start}B.weight": up}
  if in_folder:  # peft's own folder
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "adapter_model.safetensors", file)
    found = merge_lora(loaded, tmp_path / "adapter_model.safetensors")
  else:
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    found = merged(tmp_path, loaded, (file, metadata))
  expected = summed(leaf(loaded, PLACE), down, up, factor)
  np.testing.assert_allclose(leaf(found, PLACE), expected, atol=2e-5)


def test_matrices_and_convolutions_of_one_pixel_are_the_same(tmp_path):
  place = "unet", "down_0_attention_0/proj_in/kernel"
  start = "lora_unet_down_blocks_0_attentions_0_proj_in"
  for name in ("sd1", "sdxl"):
    loaded, *_ = family(name)
    down, up = factors(name)[place]
    found = []
    for axes in ((), (1, 1)):
      tensors = {
        f"{start}.lora_down.weight": down.reshape(RANK, -1, *axes),
        f"{start}.lora_up.weight": up.reshape(-1, RANK, *axes),
      }
      found.append(leaf(merged(tmp_path, loaded, tensors), place))
    np.testing.assert_array_equal(*found)
    assert (found[0] != leaf(loaded, place)).any()


def test_sums_are_computed_in_float32_and_keep_their_sharding(tmp_path):
  loaded, *_ = family("sd1")
  device = jax.devices()[3]
  to_bfloat16 = lambda x: jnp.asarray(x, jnp.bfloat16)
  unet = jax.tree.map(to_bfloat16, loaded.params.unet)
  half = dataclasses.replace(
    loaded,
    params=loaded.params.replace(
      unet=unet, conditioners=jax.device_put(loaded.params.conditioners, device)
    ),
  )
  file = file_of("sd1", "peft", 2.0)
  file = {k: v.astype(np.float16) for k, v in file[0].items()}, file[1]
  changed = merged(tmp_path, half, file)
  for place, (down, up) in factors("sd1").items():
    new, old = leaf(changed, place), leaf(half, place)
    assert (new.dtype, new.committed) == (old.dtype, old.committed)
    assert new.sharding == old.sharding
    wide = np.asarray(old).astype(np.float32)
    factors_ = [x.astype(np.float16) for x in (down, up)]
    sums = summed(wide, *factors_, 2.0)
    # Half a unit in the last place, of 8 bits or of 24.
    unit = 2.0**-8 if place[0] == "unet" else 1e-5
    error = np.abs(np.asarray(new).astype(np.float64) - sums)
    assert (error <= unit * np.abs(sums) + 2e-5).all()


def test_every_parameter_has_names_and_no_two_modules_share_one():
  for name in ("sd1", "sdxl"):
    loaded, *_ = family(name)
    known = modules(loaded)  # it compares whatever is spelled alike
    sizes = shapes(
      {
        "unet": loaded.params.unet,
        "conditioners": loaded.params.conditioners,
      }
    )
    found = [
      target
      for group in known.values()
      for module in group
      for target in module
      if target is not None
    ]
    assert {"/".join(target.path) for target in found} == set(sizes)
    for target in found:
      assert target.row.shape == sizes["/".join(target.path)]


DOWN, UP = np.ones((2, 64), np.float32), np.ones((64, 2), np.float32)
UNDER = f"lora_unet_{Q.replace('.', '_')}"
GOOD = {f"{UNDER}.lora_down.weight": DOWN, f"{UNDER}.lora_up.weight": UP}
K_OF_XL = (
  "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"
)
PEFT_K = f"unet.{Q.replace('attn1.to_q', 'attn2.to_k')}"
BAD = {
  "an unknown module": (
    GOOD | {"lora_unet_nothing.alpha": np.float32(1)},
    "1 of 3 tensors do not fit the model, which is one with a context of 64; "
    "needed are factors or differences of parameters that it has, and nothing "
    "else; they are "
    "lora_unet_nothing.alpha ()",
  ),
  "one factor": ({f"{UNDER}.lora_up.weight": UP}, "1 of 1 tensors do not fit"),
  "no floats": (
    GOOD | {f"{UNDER}.lora_up.weight": UP.astype(np.int8)},
    "2 of 2 tensors do not fit",
  ),
  "two ranks": (
    GOOD | {f"{UNDER}.lora_up.weight": UP[:, :1]},
    f"2 of 2 tensors do not fit the model, which is one with a context of 64; "
    f"needed are factors or differences of parameters that it has, and nothing "
    "else; they are "
    f"{UNDER}.lora_down.weight (2, 64), {UNDER}.lora_up.weight (64, 1)",
  ),
  "no rank": (
    {
      f"{UNDER}.lora_down.weight": DOWN[:0],
      f"{UNDER}.lora_up.weight": UP[:, :0],
    },
    "2 of 2 tensors do not fit",
  ),
  "two alphas": (
    GOOD | {f"{UNDER}.alpha": np.ones(2, np.float32)},
    "3 of 3 tensors do not fit",
  ),
  "no number": (
    GOOD | {f"{UNDER}.alpha": np.float32(np.nan)},
    f"{UNDER}.alpha has 1 values of 1 that are not finite",
  ),
  "two of one": (
    GOOD | {f"unet.{Q}.lora_A.weight": DOWN},
    f"{UNDER}.lora_down.weight and unet.{Q}.lora_A.weight are for the same",
  ),
  "another family": (
    GOOD | {K_OF_XL: np.ones((4, 2048), np.float32)},
    "1 of 3 tensors do not fit the model, which is one with a context of 64; "
    "the file seems to be for SDXL with a context of 2048",
  ),
  "another family's shapes": (
    {
      f"{PEFT_K}.lora_A.weight": np.ones((4, 768), np.float32),
      f"{PEFT_K}.lora_B.weight": np.ones((320, 4), np.float32),
    },
    "2 of 2 tensors do not fit the model, which is one with a context of 64; "
    "the file seems to be for SD 1 with a context of 768",
  ),
  "SDXL's text encoder": (
    {
      "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": DOWN,
      "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": UP,
    },
    "2 of 2 tensors do not fit the model, which is one with a context of 64; "
    "the file seems to be for SDXL; they are lora_te2_",
  ),
  "Flux": (
    {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": DOWN},
    "1 of 1 tensors do not fit the model, which is one with a context of 64; "
    "the file seems to be for FLUX",
  ),
  "nothing": ({}, "it holds no tensors"),
}  # fmt: skip


def refused(call):
  with pytest.raises(ValueError) as caught:
    call()
  assert "\n" not in str(caught.value)
  return caught.value


@pytest.mark.parametrize("case", BAD)
def test_files_that_do_not_fit_are_refused(tmp_path, case):
  tensors, message = BAD[case]
  loaded, *_ = family("sd1")
  error = refused(lambda: merged(tmp_path, loaded, tensors))
  assert isinstance(error, WeightsError)
  assert str(error).startswith(f"{tmp_path / 'x.safetensors'}: {message}")


@pytest.mark.parametrize(
  "end, kind",
  [
    ("oft_blocks", "OFT"),
    ("boft_R", "OFT"),
    ("a1.weight", "GLoRA"),
    ("on_input", "IA3"),
    ("lokr_t1", "LoKr with a core for its first factor"),
    ("lora_embedding_A", "LoRA of embeddings"),
    ("set_weight", "set of weights that replace the model's"),
    ("reshape_weight", "LoRA that enlarges the model's weights"),
  ],
)
def test_other_adapters_are_called_by_their_names(tmp_path, end, kind):
  loaded, *_ = family("sd1")
  tensors = GOOD | {f"{UNDER}.{end}": np.ones((5, 7), np.float32)}
  error = refused(lambda: merged(tmp_path, loaded, tensors))
  assert f"{UNDER}.{end} is of a {kind}, which cannot" in str(error)


@pytest.mark.parametrize(
  "text, message",
  [
    ("[1]", "the LoRA's config is not a JSON object"),
    ("{", "its JSON is malformed"),
    ('{"lora_alpha": "6"}', f"alpha of unet.{Q} is '6'; a finite number"),
    ('{"alpha_pattern": [3]}', "its alpha_pattern is a list"),
    ('{"alpha_pattern": {"(": 3}}', "its alpha_pattern has '('; needed is a"),
    ('{"rank_pattern": {"(x+)+": 3}}', "its rank_pattern has '(x+)+'; needed"),
    ('{"rank_pattern": {"(a)\\\\1": 3}}', "its rank_pattern has '(a)"),
  ],
)
def test_malformed_metadata_is_refused(tmp_path, text, message):
  loaded, *_ = family("sd1")
  start = f"unet.{Q}.lora_"
  file = {f"{start}A.weight": DOWN, f"{start}B.weight": UP}
  metadata = {"lora_adapter_metadata": text}
  error = refused(lambda: merged(tmp_path, loaded, (file, metadata)))
  assert f"x.safetensors: {message}" in str(error)


def test_scales_are_finite_and_files_are_there(tmp_path):
  loaded, *_ = family("sd1")
  error = refused(lambda: merged(tmp_path, loaded, GOOD, scale=math.inf))
  assert str(error) == "the scale of a LoRA must be finite, got inf"
  missing = tmp_path / "none.safetensors"
  error = refused(lambda: merge_lora(loaded, missing))
  assert str(error).startswith(f"{missing}: no such file")


@pytest.mark.parametrize(
  "text, file, scale",
  [
    ("a.safetensors", "a.safetensors", 1.0),
    ("a.safetensors:0.5", "a.safetensors", 0.5),
    ("C:\\x\\a.bin", "C:\\x\\a.bin", 1.0),
    ("C:\\x\\a.bin:-2", "C:\\x\\a.bin", -2.0),
    ("a:b:1e-1", "a:b", 0.1),
  ],
)
def test_a_scale_follows_the_last_colon(text, file, scale):
  assert split_scale(text) == (file, scale)


def test_adapters_are_repeated_on_the_command_line():
  arguments = ["--model=x", "--lora=a:0.5", "--lora", "b", "--embedding", "c"]
  flags, _ = parser().read(arguments)
  assert (flags.lora, flags.embedding) == (["a:0.5", "b"], ["c"])
  flags, _ = parser().read(["--model=x"])
  assert (flags.lora, flags.embedding) == (None, None)


def test_unloading_a_lora_restores_the_same_bits(tmp_path):
  """Scales are set on the base parameters, so nothing is rounded twice."""
  loaded, path = family("sd1")[0], tmp_path / "x.safetensors"
  tensors, metadata = file_of("sd1", "kohya")
  write_safetensors(path, tensors, metadata=metadata)
  base = loaded.params
  before = jax.tree.map(np.array, base)
  lora = load_lora(loaded, path)
  once = apply_loras(base, [(lora, 0.7)])
  jax.tree.map(
    np.testing.assert_array_equal,
    once,
    merge_lora(loaded, path, scale=0.7).params,
  )
  assert any(
    (np.asarray(a) != np.asarray(b)).any()
    for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(base), strict=True)
  )
  jax.tree.map(np.testing.assert_array_equal, apply_loras(base, []), before)
  jax.tree.map(np.testing.assert_array_equal, base, before)
  path.unlink()  # the factors are copies
  again = apply_loras(base, [(lora, 0.3), (lora, 0.7)])
  first = apply_loras(apply_loras(base, [(lora, 0.3)]), [(lora, 0.7)])
  jax.tree.map(np.testing.assert_array_equal, again, first)
