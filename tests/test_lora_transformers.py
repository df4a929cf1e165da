"""LoRA files of transformers: every form, fused matrices, unknown names."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from networks import random_like
from single_files import TINY_VAE

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.lora import LoRA
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.pretrained.lora.export import pairs_of, save_lora
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.text.families import TextEncoders, flux_conditioners
from ldm_jax.weights.safetensors_files import (
  read_safetensors,
  write_safetensors,
)

NETWORKS = {
  "flux": Flux(4, 16, 1, 1, 2, (2, 2, 4)),
  "sd3": MMDiT(4, 16, 2, 2, dual_blocks=(0,), is_qk_normed=True, max_size=4),
  "dit": DiT(4, 16, 2, 2),
}
WHERE = r"/(q|k|v|out|up|down|shift|modulation|context|time_1)/kernel$"
DRAW = np.random.default_rng(0)


@functools.cache
def family(name):
  """A model without text encoders, of random parameters."""
  unet = NETWORKS[name]
  width = 16 if name == "dit" else 10
  vector = np.zeros((1, width), np.float32)
  context = None if name == "dit" else np.zeros((1, 3, 12), np.float32)
  shapes = jax.eval_shape(
    unet.init,
    jax.random.key(0),
    np.zeros((1, 4, 4, 4), np.float32),
    np.zeros((1,), np.float32),
    Condition(context=context, vector=vector),
  )
  return LoadedModel(
    model=LatentDiffusion(
      TINY_VAE, unet, (), Schedule("rectified_flow"), "flow"
    ),
    params=Parameters({}, np.float32(1), {}, random_like(shapes)),
    tokenizer=None,
    height=16,
    width=16,
  )


def with_texts(loaded):
  """The model with CLIP and T5 as FLUX has them."""
  clip = ClipText(vocabulary=60, width=10, depth=1, heads=2)
  t5 = T5Encoder(40, 12, 1, 2, 4, 16, 8)
  encoders = TextEncoders((clip,), (59,), t5)
  conditioners = tuple(flux_conditioners(encoders, 12, 10))
  drop, ids = np.zeros((1,), bool), np.zeros((1, 512), np.int32)
  tokens = {"tokens": ids[:, None, :77], "t5_tokens": ids}
  shapes = {
    part.input_key: jax.eval_shape(
      part.init, jax.random.key(0), tokens[part.input_key], drop
    )
    for part in conditioners
  }
  return dataclasses.replace(
    loaded,
    model=dataclasses.replace(loaded.model, conditioners=conditioners),
    params=loaded.params.replace(conditioners=random_like(shapes)),
  )


def random(*shape):
  return DRAW.standard_normal(shape).astype(np.float32)


def assert_near(found, expected):
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
  jax.tree.map(close, found, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_default_adapts_the_attention_of_a_transformer(name):
  base = {"unet": family(name).params.unet}
  factors = LoRA().init(jax.random.key(0), base)
  found = {path[:-1] for path, _ in pairs_of(factors)}
  leaves = jax.tree_util.tree_leaves_with_path(base)
  expected = {tuple(entry.key for entry in path[:-1]) for path, _ in leaves}
  expected = {path for path in expected if path[-1] in ("q", "k", "v", "out")}
  assert found == expected and {path[-1] for path in found} >= {"q", "k", "v"}


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_lora_comes_back(name, form, tmp_path):
  """With ranks and alphas that differ between the parts of one matrix."""
  loaded = family(name)
  lora = LoRA(
    rank=2,
    alpha=3.0,
    where=WHERE,
    rank_pattern=(("/k/kernel$", 3),),
    alpha_pattern=(("/v/kernel$", 5.0),),
  )
  base = {"unet": loaded.params.unet}
  factors = lora.init(jax.random.key(0), base)
  factors = jax.tree.map(lambda x: random(*x.shape), factors)
  path = str(tmp_path / "lora.safetensors")
  save_lora(loaded, lora, factors, path, form)
  expected = lora.merge(base, factors)["unet"]
  found = merge_lora(loaded, path).params.unet
  assert_near(found, expected)
  changed = [
    np.any(a != b)
    for a, b in zip(
      *map(jax.tree.leaves, (loaded.params.unet, found)), strict=True
    )
  ]
  assert sum(changed) == len(jax.tree.leaves(factors)) // 2


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_text_encoders_are_adapted_too(form, tmp_path):
  loaded = with_texts(family("flux"))
  lora = LoRA(rank=2, where=r"^conditioners/.*/(q|up)/kernel$")
  base = {"conditioners": loaded.params.conditioners}
  factors = lora.init(jax.random.key(0), base)
  factors = jax.tree.map(lambda x: random(*x.shape), factors)
  path = str(tmp_path / "lora.safetensors")
  save_lora(loaded, lora, factors, path, form)
  starts = {
    "kohya": {"lora_te1_text_model_encoder", "lora_te3_encoder"},
    "peft": {"text_encoder.text_model.encoder", "text_encoder_2.encoder"},
  }
  names = read_safetensors(path)
  for start in starts[form]:
    assert any(name.startswith(start) for name in names), (start, [*names])
  expected = lora.merge(base, factors)["conditioners"]
  assert_near(merge_lora(loaded, path).params.conditioners, expected)


def change(loaded, found, path):
  """The difference of a kernel, as torch has it."""
  for name in path.split("/"):
    loaded, found = loaded[name], found[name]
  return np.asarray(found - loaded).T


STARTS = ("", "diffusion_model.", "base_model.model.", "transformer.")


@pytest.mark.parametrize("start", [*STARTS, "lora_unet_"])
def test_a_fused_matrix_changes_all_of_its_parts(start, tmp_path):
  """Black Forest Labs' names, of ComfyUI, peft, ai-toolkit and kohya."""
  loaded, rank = family("flux"), 2
  tensors, products = {}, {}
  for module, outputs in (
    ("double_blocks.0.txt_attn.qkv", 48),
    ("single_blocks.0.linear1", 112),
    ("final_layer.adaLN_modulation.1", 32),
  ):
    down, up = random(rank, 16), random(outputs, rank)
    products[module] = up @ down
    if start == "lora_unet_":
      name, roles = module.replace(".", "_"), ("lora_down", "lora_up")
      tensors[f"{start}{name}.alpha"] = np.asarray(rank, np.float32)
    else:
      name, roles = module, ("lora_A", "lora_B")
    for role, tensor in zip(roles, (down, up), strict=True):
      tensors[f"{start}{name}.{role}.weight"] = tensor
  path = str(tmp_path / "lora.safetensors")
  write_safetensors(path, tensors)
  params = merge_lora(loaded, path).params.unet
  of = functools.partial(change, loaded.params.unet, params)
  qkv, linear1, last = products.values()
  for i, name in enumerate("qkv"):
    found = of(f"params/double_0/text/attention/{name}/kernel")
    assert_near(found, qkv[16 * i : 16 * (i + 1)])
    found = of(f"params/single_0/attention/{name}/kernel")
    assert_near(found, linear1[16 * i : 16 * (i + 1)])
  assert_near(of("params/single_0/up/kernel"), linear1[48:])
  assert_near(of("params/shift/kernel"), last[:16])
  assert_near(of("params/scale/kernel"), last[16:])
  assert not np.any(of("params/double_0/image/attention/q/kernel"))


def test_diffusers_has_the_scale_of_the_last_layer_first(tmp_path):
  loaded = family("flux")
  path = str(tmp_path / "lora.safetensors")
  down, up = random(2, 16), random(32, 2)
  name = "transformer.norm_out.linear.lora_"
  write_safetensors(path, {f"{name}A.weight": down, f"{name}B.weight": up})
  params = merge_lora(loaded, path).params.unet
  of = functools.partial(change, loaded.params.unet, params)
  assert_near(of("params/scale/kernel"), (up @ down)[:16])
  assert_near(of("params/shift/kernel"), (up @ down)[16:])


def test_a_dora_of_a_fused_matrix_keeps_the_norms_of_rows(tmp_path):
  loaded = family("flux")
  path = str(tmp_path / "dora.safetensors")
  norms = 1 + np.abs(random(48, 1))
  name = "lora_unet_double_blocks_0_img_attn_qkv"
  tensors = {
    f"{name}.lora_down.weight": random(2, 16),
    f"{name}.lora_up.weight": random(48, 2),
    f"{name}.dora_scale": norms,
  }
  write_safetensors(path, tensors)
  params = merge_lora(loaded, path).params.unet["params"]
  heads = params["double_0"]["image"]["attention"]
  rows = np.concatenate([heads[n]["kernel"].T for n in "qkv"])
  assert_near(np.linalg.norm(rows, axis=1, keepdims=True), norms)
  write_safetensors(path + "2", tensors | {f"{name}.dora_scale": norms[:16].T})
  with pytest.raises(WeightsError, match="img_attn_qkv"):
    merge_lora(loaded, path + "2")


@pytest.mark.parametrize(
  "name, key, reason",
  [
    ("flux", "lora_te3_encoder_block_0.lora_down.weight", "lora_te3"),
    ("flux", "transformer.controlnet_blocks.0.lora_A.weight", "controlnet"),
    ("flux", "double_blocks.0.img_attn.norm.query_norm.scale", "query_norm"),
    ("sd3", "double_blocks.0.img_attn.proj.lora_A.weight", "be for FLUX"),
    ("dit", "joint_blocks.0.x_block.attn.proj.lora_A.weight", "Diffusion 3"),
  ],
)
def test_names_that_fit_nothing_are_refused(name, key, reason, tmp_path):
  path = str(tmp_path / "lora.safetensors")
  write_safetensors(path, {key: random(2, 16)})
  with pytest.raises(WeightsError, match=reason):
    merge_lora(family(name), path)


def test_a_file_of_kohyas_form_has_one_matrix_for_queries_keys_and_values(
  tmp_path,
):
  loaded = family("flux")
  lora = LoRA(rank=2, alpha=2.0, where=r"single_0/attention/(q|v)/kernel$")
  factors = lora.init(jax.random.key(0), {"unet": loaded.params.unet})
  path = str(tmp_path / "lora.safetensors")
  save_lora(loaded, lora, factors, path)
  name = "lora_unet_single_blocks_0_linear1"
  tensors = read_safetensors(path)
  assert {n: tensors[n].shape for n in tensors} == {
    f"{name}.lora_down.weight": (4, 16),
    f"{name}.lora_up.weight": (112, 4),
    f"{name}.alpha": (),
  }
