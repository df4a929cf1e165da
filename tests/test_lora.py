"""LoRA: which kernels it changes, how, and its files."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import family
from safetensors.numpy import load_file

from ldm_jax.config import load
from ldm_jax.errors import WeightsError
from ldm_jax.nn.lora import LoRA
from ldm_jax.pretrained.lora.export import pairs_of, save_lora
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.lora.skipped_modules import skipped_modules
from ldm_jax.weights.safetensors_files import metadata

RNG = np.random.default_rng(2)
ALL_KERNELS = LoRA(3, 6.0, r"kernel$")


def base_of(opened):
  return {
    "unet": opened.params.unet,
    "conditioners": opened.params.conditioners,
  }


def randomized(factors):
  return jax.tree.map(
    lambda x: RNG.standard_normal(x.shape).astype(np.float32), factors
  )


def test_a_new_lora_changes_nothing():
  base = base_of(family("sd1")[0])
  lora = LoRA()
  factors = lora.init(jax.random.key(0), base)
  same = lora.merge(base, factors)
  jax.tree.map(np.testing.assert_array_equal, base, same)


def test_the_default_adapts_the_unets_attention_alone():
  factors = LoRA().init(jax.random.key(0), base_of(family("sd1")[0]))
  paths = ["/".join(path) for path, _ in pairs_of(factors)]
  assert paths and all(p.startswith("unet/") for p in paths)
  ends = {tuple(p.split("/")[-3:-1]) for p in paths}
  assert ends == {
    (f"attention{i}", name) for i in (1, 2) for name in ("q", "k", "v", "out")
  }


def test_a_change_has_the_given_rank_and_scale():
  kernel = RNG.standard_normal((12, 10)).astype(np.float32)
  base = {"unet": {"kernel": kernel}}
  for lora in (LoRA(2, 2.0, "kernel"), LoRA(2, 8.0, "kernel")):
    factors = randomized(lora.init(jax.random.key(0), base))
    down, up = (factors["unet"]["kernel"][n] for n in ("lora_down", "lora_up"))
    change = lora.merge(base, factors)["unet"]["kernel"] - kernel
    np.testing.assert_allclose(
      change, lora.alpha / 2 * down @ up, rtol=1e-4, atol=1e-5
    )
    assert np.linalg.matrix_rank(change, tol=1e-3) == 2


def test_where_must_match_a_kernel():
  with pytest.raises(ValueError, match="finds no kernel"):
    LoRA(where="nowhere").init(jax.random.key(0), {"a": jnp.ones((2, 2))})
  with pytest.raises(ValueError, match="rank: needs 1 or more"):
    LoRA(0)


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("lora", [LoRA(3, 6.0), ALL_KERNELS])
def test_a_saved_lora_is_read_back(tmp_path, name, form, lora):
  """Convolutions and text encoders too; the reader is tested with diffusers."""
  opened, _, _ = family(name)
  base = base_of(opened)
  factors = randomized(lora.init(jax.random.key(1), base))
  path = tmp_path / "lora.safetensors"
  save_lora(opened, lora, factors, path, form)
  expected = lora.merge(base, factors)
  found = base_of(merge_lora(opened, path))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
    found,
    expected,
  )


def test_pefts_text_encoders_are_named_for_old_and_new_transformers(tmp_path):
  """Tensors have `text_model`, which diffusers removes; modules have not."""
  opened, _, _ = family("sdxl")
  lora = LoRA(3, 6.0, r"^conditioners/.*kernel$")
  factors = randomized(lora.init(jax.random.key(1), base_of(opened)))
  path = tmp_path / "lora.safetensors"
  save_lora(opened, lora, factors, path, "peft")
  config = json.loads(metadata(path)["lora_adapter_metadata"])
  names = set(load_file(path))
  for network in ("text_encoder", "text_encoder_2"):
    layer = "encoder.layers.0.self_attn.q_proj"
    assert f"{network}.text_model.{layer}.lora_A.weight" in names
    assert layer in config[f"{network}.target_modules"]
  assert "text_encoder_2.text_projection.lora_A.weight" in names
  assert "text_projection" in config["text_encoder_2.target_modules"]


VARIED = LoRA(
  3,
  6.0,
  r"kernel$",
  rank_pattern=((r"attention1/q/kernel", 5), (r"attention1", 2)),
  alpha_pattern=((r"mid_", 1.5),),
)


def test_kernels_may_have_ranks_and_scales_of_their_own():
  base = base_of(family("sd1")[0])
  factors = randomized(VARIED.init(jax.random.key(1), base))
  merged = dict(arrays(VARIED.merge(base, factors)))
  before, ranks = dict(arrays(base)), set()
  for path, (down, up) in pairs_of(factors):
    rank = 2 if "attention1" in path else 3
    rank = 5 if path[-3:] == ("attention1", "q", "kernel") else rank
    assert down.shape[-1] == len(up) == rank
    alpha = 1.5 if any(name.startswith("mid_") for name in path) else 6.0
    change = alpha / rank * np.tensordot(down, up, 1)
    close = functools.partial(np.testing.assert_allclose, atol=2e-4)
    close(merged[path], before[path] + change.reshape(before[path].shape))
    ranks.add((rank, alpha))
  assert len(ranks) == 6


def arrays(tree):
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(tuple(e.key for e in path), leaf) for path, leaf in leaves]


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_ranks_and_scales_of_kernels_are_saved(tmp_path, form):
  opened, _, _ = family("sdxl")
  base = base_of(opened)
  factors = randomized(VARIED.init(jax.random.key(1), base))
  path = tmp_path / "lora.safetensors"
  save_lora(opened, VARIED, factors, path, form)
  expected, found = (
    VARIED.merge(base, factors),
    base_of(merge_lora(opened, path)),
  )
  close = functools.partial(np.testing.assert_allclose, atol=2e-4)
  jax.tree.map(close, found, expected)
  if form == "kohya":  # diffusers reads one alpha alone
    alphas = {float(x) for n, x in load_file(path).items() if "alpha" in n}
    assert alphas == {6.0}
  else:
    config = json.loads(metadata(path)["lora_adapter_metadata"])
    place = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert (config["unet.r"], config["unet.lora_alpha"]) == (3, 6.0)
    assert config["unet.rank_pattern"][place] == 5
    assert config["unet.alpha_pattern"]["mid_block.resnets.0.conv1"] == 1.5
    # diffusers 0.36 looks both up without asking whether they are there.
    assert config["text_encoder.alpha_pattern"] == {}


@pytest.mark.parametrize(
  "options, message",
  [
    ({"where": "("}, "where: needs a regular expression, got '\\('"),
    ({"rank_pattern": (("(", 2),)}, "rank_pattern: needs a regular"),
    ({"rank_pattern": (("q", 0),)}, "needs whole numbers above 0, got 0"),
    ({"alpha_pattern": (("q", np.inf),)}, "needs numbers above 0, got inf"),
    ({"alpha_pattern": (("q", -1.0),)}, "needs numbers above 0, got -1.0"),
  ],
)
def test_patterns_are_checked_at_construction(options, message):
  with pytest.raises(ValueError, match=message):
    LoRA(**options)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_one_warning_names_what_other_programs_skip(tmp_path, caplog, name):
  opened, _, _ = family(name)
  base = base_of(opened)
  for number, (lora, form, count) in enumerate(
    (
      (LoRA(), "kohya", 0),
      (LoRA(where=r"/attention/|_block_.*kernel"), "kohya", 0),
      (ALL_KERNELS, "peft", 0),
      (ALL_KERNELS, "kohya", 1),
    )
  ):
    caplog.clear()
    factors = lora.init(jax.random.key(0), base)
    save_lora(opened, lora, factors, tmp_path / f"{number}.safetensors", form)
    lines = [r.getMessage() for r in caplog.records if "skip" in r.getMessage()]
    assert len(lines) == count
  (line,) = lines
  assert "sd-scripts skips" in line and "conv_in" in line
  assert "diffusers 0.36" in line and "attn" not in line


def test_a_lora_of_another_model_is_said_to_be_only_for_this_package():
  """That of configs/glyphs_lora.py: no other program has its conditioner."""
  experiment = load("configs/glyphs_lora.py")
  line = skipped_modules(
    experiment.task.model, [("unet", "conv_in")] * 3, "kohya"
  )
  assert line.startswith("diffusers, sd-scripts and ComfyUI have no model with")
  assert "TextEmbedder" in line and "skip all 3 modules" in line


def test_a_kernel_without_a_published_name_is_named_in_the_error(tmp_path):
  opened, _, _ = family("sd1")
  odd = {"conditioners": {"tokens": {"kernel": {"lora_down": 0, "lora_up": 0}}}}
  odd = jax.tree.map(lambda _: np.ones((2, 2), np.float32), odd)
  with pytest.raises(WeightsError, match="conditioners/tokens/kernel"):
    save_lora(opened, LoRA(), odd, tmp_path / "x.safetensors")
  assert not list(tmp_path.iterdir())
