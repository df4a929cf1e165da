"""DC-AE compared with diffusers' AutoencoderDC: random weights, both ways."""

import copy
import inspect
import json

import jax
import numpy as np
import pytest

import ldm_jax
from ldm_jax.pretrained.configs.dc_autoencoder_config import (
  DC,
  dc_autoencoder,
  dc_autoencoder_config,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
load_file = pytest.importorskip("safetensors.torch").load_file
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

pytestmark = pytest.mark.slow


def published(levels, latents):
  """The keys of f32c32, f64c128 or f128c512 (Chen et al. 2024)."""
  attending = levels - 3
  types = ["ResBlock"] * 3 + ["EfficientViTBlock"] * attending
  widths = [128, 256, 512, 512, 1024, 1024, 2048, 2048][:levels]
  return {
    "latent_channels": latents,
    "encoder_block_types": types,
    "decoder_block_types": types,
    "encoder_block_out_channels": widths,
    "decoder_block_out_channels": widths,
    "encoder_layers_per_block": [0, 4, 8] + [2] * attending,
    "decoder_layers_per_block": [0, 5, 10] + [2] * attending,
    "encoder_qkv_multiscales": [[]] * levels,
    "decoder_qkv_multiscales": [[]] * levels,
    "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * attending,
    "decoder_act_fns": ["relu"] * 3 + ["silu"] * attending,
  }


SANA = {
  "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
  "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
  "downsample_block_type": "conv",
  "upsample_block_type": "interpolate",
}
PUBLISHED = {
  "f32c32": published(6, 32),
  "f64c128": published(7, 128),
  "f128c512": published(8, 512),
  "sana": SANA,
}


def small(config):
  """The same layout, narrow and with few blocks."""
  config = {**config, "attention_head_dim": 4}
  levels = len(config["encoder_block_types"])
  widths = [4, 8, 8, 8, 16, 16, 32, 32][:levels]
  for side in ("encoder", "decoder"):
    layers = config.get(f"{side}_layers_per_block", [1] * levels)
    config[f"{side}_layers_per_block"] = [min(n, 1) for n in layers]
    config[f"{side}_block_out_channels"] = widths
  return config | {"latent_channels": widths[-1] // 2}


def mixed():
  """Options that no published one has."""
  return {
    "latent_channels": 3,
    "attention_head_dim": 3,
    "encoder_block_types": ["EfficientViTBlock", "ResBlock", "ResBlock"],
    "decoder_block_types": ["ResBlock", "EfficientViTBlock", "ResBlock"],
    "encoder_block_out_channels": [8, 4, 8],
    "decoder_block_out_channels": [6, 8, 4],
    "encoder_layers_per_block": [2, 1, 2],
    "decoder_layers_per_block": [0, 2, 1],
    "encoder_qkv_multiscales": [[3, 7], [], []],
    "decoder_qkv_multiscales": [[], [5, 1], []],
    "decoder_norm_types": ["rms_norm", "batch_norm", "batch_norm"],
    "decoder_act_fns": ["mish", "silu", "gelu"],
    "decoder_conv_act_fn": "mish",
    "downsample_block_type": "pixel_unshuffle",
    "upsample_block_type": "interpolate",
    "encoder_out_shortcut": False,
    "decoder_in_shortcut": False,
    "scaling_factor": 0.3,
  }


LAYOUTS = {name: small(config) for name, config in PUBLISHED.items()}
LAYOUTS["mixed"] = mixed()


def make(config):
  """diffusers' network of a config, every tensor and statistic random."""
  torch.manual_seed(0)
  model = diffusers.AutoencoderDC.from_config(config).eval()
  for name, tensor in model.state_dict().items():
    if not tensor.is_floating_point():
      continue
    values = torch.randn(tensor.shape) / max(1, tensor[0].numel()) ** 0.5
    is_scale = "norm" in name and name.endswith("weight")
    if name.endswith("running_var"):
      values = values.abs() + 0.5
    tensor.copy_(values * (0.3 if is_scale else 1.0) + float(is_scale))
  return model


def theirs(array, dtype):
  return torch.tensor(np.asarray(array)).to(dtype).movedim(-1, 1)


def ours(tensor):
  return tensor.detach().double().movedim(1, -1).numpy()


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(request, tmp_path_factory):
  """(diffusers' network, our module and variables of the folder it wrote)."""
  folder = str(tmp_path_factory.mktemp(request.param))
  model = make(LAYOUTS[request.param])
  model.save_pretrained(folder)
  return model, *ldm_jax.from_pretrained(folder)


def test_latents_and_images_of_a_landscape(pair):
  model, module, variables = pair
  rng = np.random.default_rng(0)
  stride = module.stride
  images = rng.standard_normal((2, stride, 2 * stride, 3), np.float32)
  latents = rng.standard_normal((2, 1, 2, module.latent_channels), np.float32)
  if stride < 64:
    latents = rng.standard_normal((2, 4, 5, latents.shape[-1]), np.float32)

  def run(network, dtype):
    with torch.no_grad():
      encoded = network.encode(theirs(images, dtype)).latent
      return ours(encoded), ours(network.decode(theirs(latents, dtype)).sample)

  exact = run(copy.deepcopy(model).double(), torch.float64)
  single = run(model, torch.float32)
  with jax.default_matmul_precision("highest"):
    apply = jax.jit(
      lambda images, latents: (
        module.apply(variables, images, method="encode").mode(),
        module.apply(variables, latents, method="decode"),
      )
    )
    found = apply(images, latents)
  each = zip(found, exact, single, strict=True)
  for name, values in zip(("latents", "images"), each, strict=True):
    mine, true, torchs = (np.asarray(x, np.float64) for x in values)
    scale = np.abs(true).max()
    assert np.std(true) > 0.01 * scale
    error, floor = (np.abs(x - true).max() / scale for x in (mine, torchs))
    assert error <= max(20 * floor, 1e-5), (name, error, floor)


def test_a_written_folder_is_read_by_diffusers(pair, tmp_path):
  model, module, variables = pair
  scale = model.config.scaling_factor
  ldm_jax.save_pretrained(module, variables, str(tmp_path), latent_scale=scale)
  again = diffusers.AutoencoderDC.from_pretrained(tmp_path).eval()
  tensors = again.state_dict()
  for name, tensor in model.state_dict().items():
    torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
  z = torch.randn(1, module.latent_channels, 2, 2)
  with torch.no_grad():
    torch.testing.assert_close(again.decode(z).sample, model.decode(z).sample)
  assert again.config.scaling_factor == scale


def test_a_single_file_has_the_names_that_diffusers_converts(pair, tmp_path):
  """mit-han-lab's, where every level with attention has at most one scale."""
  model, module, variables = pair
  if not module.encoder_stack.has_shortcut:
    pytest.skip("no published one is without shortcuts")
  path = str(tmp_path / "one.safetensors")
  ldm_jax.save_single_file(module, variables, path)
  convert = single_file_utils.convert_autoencoder_dc_checkpoint_to_diffusers
  tensors = convert(load_file(path))
  for name, tensor in model.state_dict().items():
    torch.testing.assert_close(tensors.pop(name), tensor, rtol=0, atol=0)
  assert not tensors


def test_the_config_comes_back(pair):
  model, module, _ = pair
  config = {"_class_name": DC.kind, **model.config}
  assert dc_autoencoder(json.loads(json.dumps(config)))[0] == module
  written = json.loads(json.dumps(dc_autoencoder_config(module)))
  again = diffusers.AutoencoderDC.from_config(written)
  again.load_state_dict(model.state_dict())


def test_the_schema_has_diffusers_defaults():
  parameters = dict(
    inspect.signature(diffusers.AutoencoderDC.__init__).parameters
  )
  del parameters["self"]
  assert parameters.keys() == DC.defaults.keys() | DC.demands.keys()
  for key, parameter in parameters.items():
    allowed = DC.demands.get(key, (DC.defaults.get(key),))
    assert parameter.default in allowed, key


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
  with torch.device("meta"):
    model = diffusers.AutoencoderDC(**PUBLISHED[name])
  tensors = [*model.parameters()]
  tensors += [b for b in model.buffers() if b.is_floating_point()]
  module, _ = dc_autoencoder({"_class_name": DC.kind, **PUBLISHED[name]})
  side = module.stride
  shapes = jax.eval_shape(
    module.init,
    jax.random.key(0),
    np.zeros((1, side, side, 3), np.float32),
    np.zeros((1, 1, 1, module.latent_channels), np.float32),
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == sum(tensor.numel() for tensor in tensors)
