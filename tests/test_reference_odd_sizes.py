"""Latents of odd sides, and U-Nets with a guidance embedding, as diffusers has.

Networks of random weights; the outputs are compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.pretrained.from_pretrained import from_pretrained

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(2)


@pytest.fixture(autouse=True)
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def unet_of(tmp_path, **more):
  torch.manual_seed(1)
  net = diffusers.UNet2DConditionModel(
    block_out_channels=(32, 32, 64),
    down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
    layers_per_block=1,
    attention_head_dim=8,
    cross_attention_dim=24,
    sample_size=16,
    **more,
  ).eval()
  for parameter in net.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
  net.save_pretrained(tmp_path / "unet")
  return net, *from_pretrained(str(tmp_path / "unet"))


def inputs(height, width):
  x = RNG.standard_normal((2, height, width, 4), np.float32)
  context = RNG.standard_normal((2, 5, 24), np.float32)
  return x, np.float32([3, 700]), context


def torch_output(net, x, t, context, **more):
  with torch.no_grad():
    out = net(
      torch.tensor(x).movedim(-1, 1), torch.tensor(t), torch.tensor(context),
      **more,
    ).sample  # fmt: skip
  return out.movedim(1, -1).numpy()


@pytest.mark.parametrize("size", [(16, 16), (13, 11), (14, 9), (5, 3)])
def test_a_unet_on_odd_sides(tmp_path, size):
  net, module, params = unet_of(tmp_path)
  x, t, context = inputs(*size)
  found = jax.jit(module.apply)(
    params, x, t, Condition(context=jnp.asarray(context))
  )
  needed = torch_output(net, x, t, context)
  np.testing.assert_allclose(found, needed, atol=2e-4 * np.abs(needed).max())


def test_a_guidance_embedding(tmp_path):
  """LCM's time_cond_proj_dim: an embedding of the guidance scale."""
  net, module, params = unet_of(tmp_path, time_cond_proj_dim=16)
  x, t, context = inputs(8, 8)
  guidance = np.float32([7.5, 1.5])
  embedded = (
    diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding(
      None, torch.tensor(guidance) - 1, embedding_dim=16
    )
  )
  needed = torch_output(net, x, t, context, timestep_cond=embedded)
  found = jax.jit(module.apply)(
    params, x, t,
    Condition(context=jnp.asarray(context), guidance=jnp.asarray(guidance)),
  )  # fmt: skip
  np.testing.assert_allclose(found, needed, atol=2e-4 * np.abs(needed).max())
