"""MMDiT compared with diffusers' SD3Transformer2DModel."""

import copy
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.pretrained.mmdit.mmdit_config import SD3, mmdit

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

CONFIG = {
  "sample_size": 8,
  "in_channels": 4,
  "num_layers": 4,
  "attention_head_dim": 8,
  "num_attention_heads": 2,
  "joint_attention_dim": 12,
  "caption_projection_dim": 16,
  "pooled_projection_dim": 10,
  "out_channels": 4,
  "pos_embed_max_size": 6,
}
KINDS = {
  "sd3": {},
  "sd3.5-medium": {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
  "sd3.5-large": {"qk_norm": "rms_norm"},
}


def random_weights(model):
  """Every tensor random, none zero, but the positions."""
  for name, tensor in model.state_dict().items():
    if name == "pos_embed.pos_embed":
      continue
    fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 100
    noise = torch.randn(tensor.shape) * fan_in**-0.5
    tensor.copy_(noise + ("norm" in name and tensor.ndim == 1))
  return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def network(request):
  torch.manual_seed(0)
  config = CONFIG | KINDS[request.param]
  return random_weights(diffusers.SD3Transformer2DModel(**config))


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("mmdit") / "transformer")
  network.save_pretrained(path)
  return path


# 8 x 8 is the size of training; 12 x 4 is not square, and the largest.
@pytest.mark.parametrize("size", [(8, 8), (12, 4)])
def test_outputs_at_several_times_of_several_prompts(network, folder, size):
  rng = np.random.default_rng(0)
  array = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  z, context, vector = array(4, *size, 4), array(4, 7, 12), array(4, 10)
  times = np.array([1.0, 17.5, 500.0, 1000.0], np.float32)

  def theirs(dtype):
    model = copy.deepcopy(network).to(dtype)
    with torch.no_grad():
      out = model(
        torch.tensor(z).to(dtype).movedim(-1, 1),
        torch.tensor(context).to(dtype),
        torch.tensor(vector).to(dtype),
        torch.tensor(times),
      ).sample
    return out.double().movedim(1, -1).numpy()

  module, variables = ldm_jax.from_pretrained(folder)
  s = times / 1000
  xt = z / np.hypot(s, 1 - s)[:, None, None, None]
  with jax.default_matmul_precision("highest"):
    found = jax.jit(module.apply)(
      variables,
      jnp.asarray(xt),
      jnp.asarray(times) - 1,
      Condition(context=jnp.asarray(context), vector=jnp.asarray(vector)),
    )
  exact, single = theirs(torch.float64), theirs(torch.float32)
  scale = np.abs(exact).max()
  error, floor = (np.abs(x - exact).max() / scale for x in (found, single))
  assert error <= max(20 * floor, 1e-5)


def test_a_written_folder_is_read_by_diffusers(network, folder, tmp_path):
  path = str(tmp_path / "again")
  module, variables = ldm_jax.from_pretrained(folder)
  ldm_jax.save_pretrained(module, variables, path)
  again = diffusers.SD3Transformer2DModel.from_pretrained(path)
  ours, theirs = again.state_dict(), network.state_dict()
  assert ours.keys() == theirs.keys()
  for key, tensor in theirs.items():
    torch.testing.assert_close(ours[key], tensor, rtol=0, atol=0)
  for key, value in network.config.items():
    value = list(value) if isinstance(value, tuple) else value
    assert key.startswith("_") or again.config[key] == value, key


def test_the_schema_has_diffusers_defaults():
  signature = inspect.signature(diffusers.SD3Transformer2DModel.__init__)
  parameters = dict(list(signature.parameters.items())[1:])
  assert parameters.keys() == SD3.defaults.keys()
  for name, parameter in parameters.items():
    if name != "dual_attention_layers":
      assert parameter.default == SD3.defaults[name], name
  assert mmdit({"_class_name": SD3.kind}).dual_blocks == ()
