"""Comparisons with transformers' DINOv2, random and small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax.nn.encoders.dinov2 import MEAN, STD, DinoV2
from ldm_jax.nn.encoders.position_grid import interpolation_matrix
from ldm_jax.pretrained.configs.text_encoder_config import gated_width
from ldm_jax.pretrained.metric_networks.dinov2 import open_dinov2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

SMALL = {
  "hidden_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 1,
  "mlp_ratio": 2,
  "image_size": 20,
  "patch_size": 4,
}


def encoder(kind, **keys):
  """transformers' encoder, all random."""
  torch.manual_seed(0)
  config = getattr(transformers, f"{kind}Config")(
    **SMALL, **keys, attn_implementation="sdpa"
  )
  theirs = getattr(transformers, f"{kind}Model")(config).eval()
  for parameter in theirs.parameters():
    parameter.data += torch.randn(parameter.shape) * 0.2
  return theirs


def states(theirs, images, dtype):
  """The last states of images in [-1, 1]."""
  pixels = ((images.astype(np.float64) + 1) / 2 - np.array(MEAN)) / STD
  pixels = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=dtype)
  with torch.no_grad():
    found = theirs.to(dtype)(pixel_values=pixels)
  return found.last_hidden_state.numpy()


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_features_equal_transformers(tmp_path, kind, is_gated):
  """Through a folder, of sizes whose positions are and are not learned."""
  theirs = encoder(kind, use_swiglu_ffn=is_gated)
  theirs.save_pretrained(tmp_path)
  module, variables = open_dinov2(str(tmp_path))
  rng = np.random.default_rng(0)
  for height, width in ((20, 20), (12, 28), (32, 8)):
    shape = (2, height, width, 3)
    images = rng.uniform(-1, 1, shape).astype(np.float32)
    float32 = states(theirs, images, torch.float32)
    exact = states(theirs, images, torch.float64)
    with jax.default_matmul_precision("highest"):
      found = module.apply(variables, jnp.asarray(images))
    patches = found.patches.reshape(2, -1, 64)
    assert patches.shape[1] == height * width // 16
    ours = np.concatenate([found.class_token[:, None], patches], axis=1)
    kept = [0, *range(exact.shape[1] - patches.shape[1], exact.shape[1])]
    error = np.abs(ours - exact[:, kept]).max()
    torchs = np.abs(float32 - exact).max()
    assert error <= max(20 * torchs, 1e-5 * exact.std())


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_transformers_opens_what_is_saved(tmp_path, kind):
  """With no tensor missing, and none that it does not know."""
  encoder(kind, use_swiglu_ffn=True).save_pretrained(tmp_path / "theirs")
  module, variables = open_dinov2(str(tmp_path / "theirs"))
  ldm_jax.save_pretrained(module, variables, str(tmp_path / "ours"))
  theirs, said = getattr(transformers, f"{kind}Model").from_pretrained(
    tmp_path / "ours", output_loading_info=True
  )
  assert not any(said.values())
  images = np.random.default_rng(2).uniform(-1, 1, (2, 20, 20, 3))
  images = images.astype(np.float32)
  found = module.apply(variables, jnp.asarray(images))
  expected = states(theirs, images, torch.float32)
  np.testing.assert_allclose(found.class_token, expected[:, 0], atol=2e-5)


@pytest.mark.parametrize("resized", [3, 16, 50])
def test_positions_of_the_authors_code_equal_torchs(resized):
  """interpolate by a scale of (resized + 0.1) / 37, as their code calls it."""
  grid = np.random.default_rng(0).standard_normal((37, 37))
  theirs = torch.nn.functional.interpolate(
    torch.tensor(grid)[None, None],
    scale_factor=((resized + 0.1) / 37,) * 2,
    mode="bicubic",
  )[0, 0]
  matrix = interpolation_matrix(37, resized, False, 0.1)
  matrix = np.asarray(matrix, np.float64)
  np.testing.assert_allclose(matrix @ grid @ matrix.T, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_a_file_of_the_authors_has_transformers_features(tmp_path, kind):
  """Under the names of transformers' own conversion, where they interpolate
  alike: at the learned size, and with registers at any."""
  theirs = encoder(kind, use_swiglu_ffn=True)
  tensors = {}
  heads = ("q_proj", "k_proj", "v_proj")
  for name, tensor in theirs.state_dict().items():
    name = name.removeprefix("embeddings.").replace("encoder.layer", "blocks")
    renamed = (
      ("position_embeddings", "pos_embed"),
      ("patch_embeddings.projection", "patch_embed.proj"),
      ("layernorm", "norm"),
      ("layer_scale1.lambda1", "ls1.gamma"),
      ("layer_scale2.lambda1", "ls2.gamma"),
      ("attention.o_proj", "attn.proj"),
      ("mlp.down_proj", "mlp.w3"),
    )
    for old, new in renamed:
      name = name.replace(old, new)
    tensors[name] = tensor
  for leaf in ("weight", "bias"):
    for i in range(2):
      stacked = [tensors.pop(f"blocks.{i}.attention.{h}.{leaf}") for h in heads]
      tensors[f"blocks.{i}.attn.qkv.{leaf}"] = torch.cat(stacked)
      stacked = [
        tensors.pop(f"blocks.{i}.mlp.{name}_proj.{leaf}")
        for name in ("gate", "up")
      ]
      tensors[f"blocks.{i}.mlp.w12.{leaf}"] = torch.cat(stacked)
  path = str(tmp_path / "dinov2_pretrain.pth")
  torch.save(tensors, path)
  module, variables = open_dinov2(path)
  size = 20 if kind == "Dinov2" else 12
  images = np.random.default_rng(1).uniform(-1, 1, (1, size, size, 3))
  images = images.astype(np.float32)
  found = module.apply(variables, jnp.asarray(images))
  expected = states(theirs, images, torch.float32)
  np.testing.assert_allclose(found.class_token, expected[:, 0], atol=2e-5)


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_the_largest_encoder_has_its_exact_size(kind):
  """ViT-g/14: transformers' own count, with the mask token that is left out."""
  registers = 4 if kind == "Dinov2WithRegisters" else 0
  keys = {"hidden_size": 1536, "num_hidden_layers": 40, "image_size": 518}
  keys |= {"num_attention_heads": 24, "patch_size": 14, "use_swiglu_ffn": True}
  config = getattr(transformers, f"{kind}Config")(**keys)
  with torch.device("meta"):
    theirs = getattr(transformers, f"{kind}Model")(config)
  ours = DinoV2(
    *(518, 14, 1536, 40, 24),
    hidden=gated_width(4 * 1536),
    feed_forward="swiglu",
    registers=registers,
  )
  variables = jax.eval_shape(
    ours.init, jax.random.key(0), jnp.zeros((1, 518, 518, 3))
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert count + 1536 == sum(p.numel() for p in theirs.parameters())
