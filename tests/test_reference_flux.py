"""FLUX compared with diffusers' FluxTransformer2DModel and its converters."""

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flux_references import CONFIG, WIDTH, of_width, random_weights

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.export import export_network
from ldm_jax.pretrained.flux.flux_config import FLUX
from ldm_jax.pretrained.networks import load

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow


class ExactSinusoids(torch.nn.Module):
  """Of time and guidance: diffusers' frequencies are float32 in any format.

  At 1000 times a scale of 10 their rounding is that of torch's own float32.
  """

  def forward(self, numbers):
    exponents = torch.arange(128, dtype=torch.float64) / 128
    angles = numbers.double()[:, None] * 10_000.0**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@pytest.fixture(scope="module")
def transformer():
  torch.manual_seed(0)
  return random_weights(diffusers.FluxTransformer2DModel(**CONFIG))


@pytest.fixture(scope="module")
def folder(transformer, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("flux") / "transformer")
  transformer.save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def loaded(folder):
  return load(open_network(folder))


def test_outputs_at_several_times_prompts_and_scales(transformer, loaded):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  xt, context, vector = draw(4, 6, 8, 4), draw(4, 5, 12), draw(4, 10)
  times, scales = np.array([0, 17, 500, 999]), np.array([1, 3.5, 7, 10])
  s = ((times + 1) / 1000).astype(np.float32)
  z = xt * np.hypot(s, 1 - s)[:, None, None, None]

  def theirs(dtype):
    network = copy.deepcopy(transformer).to(dtype)
    if dtype == torch.float64:
      network.time_text_embed.time_proj = ExactSinusoids()
    cast = lambda x: torch.tensor(x).to(dtype)
    pipeline = diffusers.FluxPipeline
    ids = pipeline._prepare_latent_image_ids(4, 3, 4, "cpu", dtype)
    tokens = pipeline._pack_latents(cast(z).movedim(-1, 1), 4, 4, 6, 8)
    with torch.no_grad():
      out = network(
        tokens,
        cast(context),
        cast(vector),
        cast((times + 1) / 1000),
        ids,
        torch.zeros(5, 3).to(dtype),
        cast(scales),
      ).sample
    out = pipeline._unpack_latents(out, 6, 8, 1)
    return out.double().movedim(1, -1).numpy()

  module, variables = loaded
  condition = Condition(
    *(jnp.asarray(context), None, jnp.asarray(vector), jnp.asarray(scales))
  )
  exact, single = theirs(torch.float64), theirs(torch.float32)
  scale = np.abs(exact).max()
  floor = np.abs(single - exact).max() / scale
  for is_scanned in (False, True):
    with jax.default_matmul_precision("highest"):
      found = jax.jit(module.clone(is_scanned=is_scanned).apply)(
        variables, jnp.asarray(xt), jnp.asarray(times, jnp.float32), condition
      )
    error = np.abs(found - exact).max() / scale
    assert error <= max(20 * floor, 1e-5)


def exported(loaded, scheme):
  module, variables = loaded
  network = export_network(module, variables)
  tensors = network.tensors(scheme, np.dtype(np.float32))
  return {name: torch.tensor(np.asarray(x)) for name, x in tensors.items()}


def test_names_come_back_bit_for_bit(transformer, loaded):
  own, theirs = exported(loaded, "diffusers"), transformer.state_dict()
  assert own.keys() == theirs.keys()
  for name, tensor in theirs.items():
    torch.testing.assert_close(own[name], tensor, rtol=0, atol=0)


def test_single_file_names_are_those_that_diffusers_reads(transformer, loaded):
  """They are converted to the tensors of the folder, bit for bit."""
  from diffusers.loaders import single_file_utils

  convert = of_width(
    single_file_utils.convert_flux_transformer_checkpoint_to_diffusers, WIDTH
  )
  found, theirs = convert(exported(loaded, "compvis")), transformer.state_dict()
  assert found.keys() == theirs.keys()
  for name, tensor in theirs.items():
    torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_the_schema_has_diffusers_defaults():
  signature = inspect.signature(diffusers.FluxTransformer2DModel.__init__)
  for name, parameter in list(signature.parameters.items())[1:]:
    default = parameter.default
    if name in FLUX.demands:
      assert default in FLUX.demands[name]
    else:
      assert (default or 0) == FLUX.defaults[name], name


@pytest.mark.parametrize("has_guidance", [True, False])
def test_published_sizes(has_guidance):
  with torch.device("meta"):
    model = diffusers.FluxTransformer2DModel(guidance_embeds=has_guidance)
  module = Flux(embeds_guidance=has_guidance)
  shapes = jax.eval_shape(
    module.init,
    jax.random.key(0),
    np.zeros((1, 2, 2, 16), np.float32),
    np.zeros((1,), np.float32),
    Condition(
      context=np.zeros((1, 1, 4096), np.float32),
      vector=np.zeros((1, 768), np.float32),
    ),
  )
  own = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert own == sum(p.numel() for p in model.parameters())
