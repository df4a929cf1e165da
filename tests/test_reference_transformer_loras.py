"""LoRAs merged as diffusers' pipelines of FLUX and SD 3 fuse them."""

import copy

import jax
import numpy as np
import pytest
from networks import random_tensors
from single_files import TINY_VAE

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.lora import LoRA
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.export import export_network
from ldm_jax.pretrained.lora.export import save_lora
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.networks import load
from ldm_jax.weights.safetensors_files import write_safetensors

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
references = pytest.importorskip("flux_references")

pytestmark = pytest.mark.slow

RANK, ALPHA, WIDTH = 3, 6.0, references.WIDTH
CONVERTERS = (
  "_convert_kohya_flux_lora_to_diffusers",
  "_convert_fal_kontext_lora_to_diffusers",
)


@pytest.fixture(scope="module")
def transformer():
  torch.manual_seed(0)
  model = diffusers.FluxTransformer2DModel(**references.CONFIG)
  return references.random_weights(model)


def loaded_here(transformer, path):
  transformer.save_pretrained(path)
  module, variables = load(open_network(path))
  return LoadedModel(
    model=LatentDiffusion(
      TINY_VAE, module, (), Schedule("rectified_flow"), "flow"
    ),
    params=Parameters({}, np.float32(1), {}, variables),
    tokenizer=None,
    height=16,
    width=16,
  )


@pytest.fixture(scope="module")
def loaded(transformer, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("flux") / "transformer")
  return loaded_here(transformer, path)


@pytest.fixture
def fused(transformer, monkeypatch):
  """A LoRA file -> tensors of diffusers' transformer with it."""
  from diffusers.loaders import lora_conversion_utils, lora_pipeline

  for name in CONVERTERS:
    converter = getattr(lora_conversion_utils, name)
    own = references.of_width(converter, WIDTH)
    monkeypatch.setattr(lora_pipeline, name, own)

  def load_and_fuse(path):
    pipeline = diffusers.FluxPipeline(
      scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
      vae=None,
      text_encoder=None,
      tokenizer=None,
      text_encoder_2=None,
      tokenizer_2=None,
      transformer=copy.deepcopy(transformer),
    )
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    return pipeline.transformer.state_dict()

  return load_and_fuse


def assert_merged(loaded, expected, base):
  """Every tensor, some of them changed."""
  network = export_network(loaded.model.unet, loaded.params.unet)
  tensors = network.tensors("diffusers", np.dtype(np.float32))
  assert tensors.keys() == expected.keys()
  changed = 0
  for name, tensor in expected.items():
    found = np.asarray(tensors[name])
    np.testing.assert_allclose(found, tensor, atol=5e-6, err_msg=name)
    changed += np.any(found != base[name].numpy())
  return changed


def modules(transformer):
  """(diffusers' name, outputs, inputs) of the layers in blocks."""
  return {
    name: tuple(layer.weight.shape)
    for name, layer in transformer.named_modules()
    if isinstance(layer, torch.nn.Linear) and "blocks." in name
  }


BFL = {
  f"{block}.{i}.{name}": shape
  for i in range(2)
  for block, layers in (
    (
      "double_blocks",
      {
        f"{side}_{name}": shape
        for side in ("img", "txt")
        for name, shape in (
          ("attn.qkv", (3 * WIDTH, WIDTH)),
          ("attn.proj", (WIDTH, WIDTH)),
          ("mlp.0", (4 * WIDTH, WIDTH)),
          ("mlp.2", (WIDTH, 4 * WIDTH)),
          ("mod.lin", (6 * WIDTH, WIDTH)),
        )
      },
    ),
    (
      "single_blocks",
      {
        "linear1": (7 * WIDTH, WIDTH),
        "linear2": (WIDTH, 5 * WIDTH),
        "modulation.lin": (3 * WIDTH, WIDTH),
      },
    ),
  )
  for name, shape in layers.items()
}


@pytest.mark.parametrize("style", ["diffusers", "kohya", "bfl"])
def test_published_forms(transformer, loaded, fused, style, tmp_path):
  shapes = modules(transformer) if style == "diffusers" else dict(BFL)
  if style == "bfl":
    shapes["final_layer.linear"] = WIDTH, WIDTH
  sizes = {}
  for name, (outputs, inputs) in shapes.items():
    sizes[name, "down"], sizes[name, "up"] = (RANK, inputs), (outputs, RANK)
  tensors = {}
  for (name, side), tensor in random_tensors(sizes).items():
    tensor = np.asarray(0.1 * tensor, np.float32)
    if style == "kohya":
      name = f"lora_unet_{name.replace('.', '_')}"
      tensors[f"{name}.lora_{side}.weight"] = tensor
      tensors[f"{name}.alpha"] = np.asarray(ALPHA, np.float32)
    else:
      start = "transformer" if style == "diffusers" else "base_model.model"
      letter = {"down": "A", "up": "B"}[side]
      tensors[f"{start}.{name}.lora_{letter}.weight"] = tensor
  path = str(tmp_path / "lora.safetensors")
  write_safetensors(path, tensors)
  count = assert_merged(
    merge_lora(loaded, path), fused(path), transformer.state_dict()
  )
  assert count == len(modules(transformer)) + (style == "bfl")


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_a_trained_lora_is_read_by_diffusers(
  transformer, loaded, fused, form, tmp_path
):
  lora = LoRA(
    rank=2,
    alpha=4.0,
    where=r"(double|single)_\d/.*(q|v|out|up|modulation)/kernel$",
    rank_pattern=(("single_1", 3),),
  )
  factors = lora.init(jax.random.key(0), {"unet": loaded.params.unet})
  rng = np.random.default_rng(0)
  factors = jax.tree.map(
    lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), factors
  )
  path = str(tmp_path / "lora.safetensors")
  save_lora(loaded, lora, factors, path, form)
  count = assert_merged(
    merge_lora(loaded, path), fused(path), transformer.state_dict()
  )
  assert count == len(jax.tree.leaves(factors)) // 2


def test_stable_diffusion_3(tmp_path):
  """A trained LoRA, which diffusers reads as it is written here."""
  torch.manual_seed(0)
  transformer = diffusers.SD3Transformer2DModel(
    sample_size=8,
    in_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=12,
    caption_projection_dim=16,
    pooled_projection_dim=10,
    out_channels=4,
    pos_embed_max_size=6,
    dual_attention_layers=(0,),
    qk_norm="rms_norm",
  ).eval()
  loaded = loaded_here(transformer, str(tmp_path / "transformer"))
  where = r"block_\d/.*(q|v|out|up|image_modulation)/kernel$"
  lora = LoRA(rank=2, alpha=4.0, where=where)
  factors = lora.init(jax.random.key(0), {"unet": loaded.params.unet})
  rng = np.random.default_rng(0)
  factors = jax.tree.map(
    lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), factors
  )
  path = str(tmp_path / "lora.safetensors")
  save_lora(loaded, lora, factors, path, "peft")
  names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
  names += ("text_encoder_3", "tokenizer_3", "vae")
  pipeline = diffusers.StableDiffusion3Pipeline(
    scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    transformer=copy.deepcopy(transformer),
    **dict.fromkeys(names),
  )
  pipeline.load_lora_weights(path)
  pipeline.fuse_lora(components=["transformer"])
  pipeline.unload_lora_weights()
  count = assert_merged(
    merge_lora(loaded, path),
    pipeline.transformer.state_dict(),
    transformer.state_dict(),
  )
  assert count == len(jax.tree.leaves(factors)) // 2
