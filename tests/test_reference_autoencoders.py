"""Live comparisons with diffusers: every published shape of autoencoder.

Folders are written by diffusers, with random weights of small widths.
"""

import json
import math
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import autoencoder_shapes
from published_configs import ASYMMETRIC_VAE, FLUX2_VAE, FLUX_VAE, SD3_VAE

import ldm_jax
from ldm_jax.nn.latent_normalization import denormalize, normalize
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder
from ldm_jax.weights.files import read_tensors

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

LEVELS = 4
DOWN, UP = ("DownEncoderBlock2D",) * LEVELS, ("UpDecoderBlock2D",) * LEVELS
WIDTHS = (8, 16, 32, 32)
COMMON = {
  "down_block_types": DOWN,
  "up_block_types": UP,
  "block_out_channels": WIDTHS,
  "layers_per_block": 2,
  "norm_num_groups": 4,
}
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
CONFIGS = {
  "sd": ("AutoencoderKL", COMMON | {"latent_channels": 4}),
  "sd3": (
    "AutoencoderKL",
    COMMON
    | NO_QUANT
    | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
  ),
  "flux1": (
    "AutoencoderKL",
    COMMON
    | NO_QUANT
    | {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
  ),
  "one quant convolution": (
    "AutoencoderKL",
    COMMON | {"latent_channels": 4, "use_quant_conv": False},
  ),
  "mean and std": (
    "AutoencoderKL",
    COMMON
    | {
      "latent_channels": 4,
      "latents_mean": [-1.6, 1.1, 0.3, 0.9],
      "latents_std": [8.4, 5.9, 3.0, 5.3],
      "scaling_factor": 0.5,
      "force_upcast": False,
    },
  ),
  "flux2": (
    "AutoencoderKLFlux2",
    COMMON
    | {"latent_channels": 6, "decoder_block_out_channels": (12, 24, 36, 36)},
  ),
  "flux2 without quant convolutions": (
    "AutoencoderKLFlux2",
    COMMON | NO_QUANT | {"latent_channels": 6, "batch_norm_eps": 1e-3},
  ),
  "asymmetric": (
    "AsymmetricAutoencoderKL",
    {
      "down_block_types": DOWN,
      "up_block_types": UP,
      "down_block_out_channels": WIDTHS,
      "up_block_out_channels": (12, 24, 48, 48),
      "layers_per_down_block": 1,
      "layers_per_up_block": 2,
      "norm_num_groups": 4,
      "latent_channels": 4,
    },
  ),
}


TINY = {
  "encoder_block_out_channels": (8,) * LEVELS,
  "decoder_block_out_channels": (8,) * LEVELS,
  "num_encoder_blocks": (1, 2, 1, 1),
  "num_decoder_blocks": (1, 1, 2, 1),
}
CONFIGS |= {
  "taesd": ("AutoencoderTiny", TINY),
  # Of SD 3 and FLUX.1: TAESD3, TAEF1.
  "taesd of 16 channels": (
    "AutoencoderTiny",
    TINY | {"latent_channels": 16, "shift_factor": 0.0},
  ),
  "vq": (
    "VQModel",
    COMMON
    | {
      "latent_channels": 3,
      "num_vq_embeddings": 32,
      "vq_embed_dim": 3,
      "scaling_factor": 0.5,
      "sample_size": 32,
    },
  ),
}
PUBLISHED = {
  "sd3": SD3_VAE,
  "flux1": FLUX_VAE,
  "flux2": FLUX2_VAE,
  "asymmetric": ASYMMETRIC_VAE,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters(name):
  config = PUBLISHED[name]
  with torch.device("meta"):
    model = getattr(diffusers, config["_class_name"]).from_config(config)
  needed = sum(parameter.numel() for parameter in model.parameters())
  module, _ = autoencoder(config)
  found = autoencoder_shapes(module).values()
  assert sum(math.prod(shape) for shape in found) == needed


def random_model(name):
  kind, config = CONFIGS[name]
  torch.manual_seed(len(name))
  model = getattr(diffusers, kind)(**config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      fan = max(1, parameter[0].numel())
      parameter.copy_(torch.randn(parameter.shape) / fan**0.5)
    if hasattr(model, "bn"):
      count = model.bn.running_mean.numel()
      model.bn.running_mean.copy_(torch.randn(count))
      model.bn.running_var.copy_(torch.rand(count) + 0.1)
      model.bn.num_batches_tracked.fill_(1234)
  return model


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
  """diffusers' model, the folder that it wrote, and ours that reads it."""
  folder = tmp_path_factory.mktemp("vae")
  model = random_model(request.param)
  model.save_pretrained(folder)
  return model, folder, ldm_jax.from_pretrained(str(folder))


def plain(value):
  return list(value) if isinstance(value, tuple) else value


def images(height=40, width=24, count=2):
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def to_torch(array, dtype=None):
  tensor = torch.from_numpy(np.asarray(array).transpose(0, 3, 1, 2))
  return tensor if dtype is None else tensor.to(dtype)


def to_numpy(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def agrees(ours, single, double):
  """20 times torch's own error in float32, with a floor of 1e-5 of scale."""
  exact = to_numpy(double)
  scale = np.abs(exact).max()
  allowed = 20 * np.abs(to_numpy(single) - exact).max() + 1e-5 * scale
  assert np.abs(np.asarray(ours, np.float64) - exact).max() <= allowed


def both(model, call):
  """The results of `call` in float32 and in float64."""
  with torch.no_grad():
    single = call(model, torch.float32)
    double = call(model.double(), torch.float64)
    model.float()
  return single, double


def test_moments(pair):
  model, _, (module, params) = pair
  x = images()
  found = module.apply(params, jnp.asarray(x), method="encode").moments

  def encode(m, dtype):
    encoded = m.encode(to_torch(x, dtype))
    is_random = hasattr(encoded, "latent_dist")
    return encoded.latent_dist.parameters if is_random else encoded.latents

  agrees(found, *both(model, encode))


def test_decoded(pair):
  model, _, (module, params) = pair
  shape = (2, *module.latent_shape(40, 24))
  z = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  found = module.apply(params, jnp.asarray(z), method="decode")
  decode = lambda m, dtype: m.decode(to_torch(z, dtype)).sample
  agrees(found, *both(model, decode))


def test_decoded_with_the_known_part():
  model = random_model("asymmetric")
  module, params = ours_of(model)
  x, rng = images(), np.random.default_rng(2)
  z = rng.normal(size=(2, 5, 3, 4)).astype(np.float32)
  masks = (rng.uniform(size=(2, 40, 24, 1)) > 0.5).astype(np.float32)
  given = map(jnp.asarray, (z, x, masks))
  found = module.apply(params, *given, method="decode")

  def decode(m, dtype):
    known = {"image": to_torch(x, dtype), "mask": to_torch(masks, dtype)}
    return m.decode(to_torch(z, dtype), **known).sample

  agrees(found, *both(model, decode))


def ours_of(model):
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    return ldm_jax.from_pretrained(folder)


def test_latents_are_normalised_as_in_the_pipelines(pair):
  model, _, (module, _) = pair
  if type(model).__name__ in ("AutoencoderTiny", "VQModel"):
    pytest.skip("their latents have a scale alone")
  z = np.random.default_rng(3).normal(size=(1, 6, 4, module.latent_channels))
  z, config = z.astype(np.float32), model.config
  if hasattr(model, "bn"):
    pipeline = diffusers.Flux2Pipeline
    patched = pipeline._patchify_latents(to_torch(z))
    mean = model.bn.running_mean.view(1, -1, 1, 1)
    variance = model.bn.running_var.view(1, -1, 1, 1)
    std = torch.sqrt(variance + config.batch_norm_eps)
    needed = pipeline._unpatchify_latents((patched - mean) / std)
  elif getattr(config, "latents_mean", None) is not None:
    # Without the scaling_factor, which is the model's latent_scale here.
    mean, std = (
      torch.tensor(config[key]).view(1, -1, 1, 1)
      for key in ("latents_mean", "latents_std")
    )
    needed = (to_torch(z) - mean) / std
  else:
    needed = to_torch(z) - (getattr(config, "shift_factor", None) or 0)
  posterior = module.posterior(jnp.concatenate([z, jnp.zeros_like(z)], -1))
  normal = normalize(module, posterior)
  np.testing.assert_allclose(normal.mode(), to_numpy(needed), atol=1e-6)
  np.testing.assert_allclose(
    denormalize(module, normal.mode()), z, rtol=1e-5, atol=1e-6
  )
  # A sample of the normal posterior is the normal form of the sample.
  noise = np.random.default_rng(4).normal(size=z.shape).astype(np.float32)
  np.testing.assert_allclose(
    denormalize(module, normal.sample(jnp.asarray(noise))),
    posterior.sample(jnp.asarray(noise)),
    rtol=1e-4,
    atol=1e-5,
  )


def test_round_trip(pair, tmp_path):
  model, folder, (module, params) = pair
  scale = getattr(model.config, "scaling_factor", None)
  ldm_jax.save_pretrained(
    module, params, str(tmp_path / "out"), latent_scale=scale
  )
  before, after = (
    read_tensors(f"{path}/diffusion_pytorch_model.safetensors")
    for path in (str(folder), str(tmp_path / "out"))
  )
  assert set(before) == set(after)
  for name in before:
    np.testing.assert_array_equal(before[name], after[name], err_msg=name)
  again = type(model).from_pretrained(tmp_path / "out")
  written = json.loads((tmp_path / "out" / "config.json").read_text())
  for key in written:
    if key not in ("_diffusers_version", "sample_size"):
      assert plain(again.config[key]) == plain(model.config[key]), key
  with torch.no_grad():
    z = torch.randn(1, module.latent_channels, 3, 2)
    torch.testing.assert_close(again.decode(z).sample, model.decode(z).sample)


def test_single_file_with_the_names_of_diffusers(pair, tmp_path):
  model, folder, (module, params) = pair
  if type(model).__name__ == "VQModel":
    pytest.skip("it is given as a folder")
  config = json.loads((folder / "config.json").read_text())
  keys = ("norm_num_groups", "scaling_factor", "shift_factor")
  keys += ("latents_mean", "latents_std", "batch_norm_eps")
  own = {key: config[key] for key in keys if config.get(key) is not None}
  found, loaded = ldm_jax.from_single_file(
    str(folder / "diffusion_pytorch_model.safetensors"), config={"vae": own}
  )
  assert found == module
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_single_file_with_the_names_of_compvis(pair, tmp_path):
  model, _, (module, params) = pair
  if type(model).__name__ in ("AsymmetricAutoencoderKL", "AutoencoderTiny"):
    pytest.skip("there are no such files")
  scale = getattr(model.config, "scaling_factor", None)
  path = str(tmp_path / "ae.safetensors")
  ldm_jax.save_single_file(module, params, path, latent_scale=scale)
  found, loaded = ldm_jax.from_single_file(path)
  assert found == module
  z = np.random.default_rng(5).normal(size=(1, 3, 2, module.latent_channels))
  np.testing.assert_array_equal(
    found.apply(loaded, jnp.asarray(z), method="decode"),
    module.apply(params, jnp.asarray(z), method="decode"),
  )
  names = set(read_tensors(path))
  is_flux2 = hasattr(model, "bn") and module.has_quant_conv
  assert ("encoder.quant_conv.weight" in names) == is_flux2
