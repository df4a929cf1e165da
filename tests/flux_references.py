"""A small FLUX of diffusers, of random weights, and converters of its width."""

import inspect

import pytest

torch = pytest.importorskip("torch")

CONFIG = {
  "in_channels": 16,
  "num_layers": 2,
  "num_single_layers": 2,
  "attention_head_dim": 8,
  "num_attention_heads": 2,
  "joint_attention_dim": 12,
  "pooled_projection_dim": 10,
  "guidance_embeds": True,
  "axes_dims_rope": (2, 2, 4),
}
WIDTH = 16


def random_weights(model):
  """Every tensor random, none zero."""
  for tensor in model.state_dict().values():
    scale = max(1, tensor[0].numel()) ** -0.5 if tensor.ndim > 1 else 0.1
    tensor.copy_(torch.randn(tensor.shape) * scale + (tensor.ndim == 1))
  return model.eval()


def of_width(function, width):
  """A converter of diffusers for networks of another width than 3072.

  And, where it has their numbers, of two blocks of each kind.
  """
  source = inspect.getsource(function).replace("3072", str(width))
  source = source.replace("layers = 19", "layers = 2")
  source = source.replace("layers = 38", "layers = 2")
  namespace = dict(vars(inspect.getmodule(function)))
  exec(source.replace("12288", str(4 * width)), namespace)
  return namespace[function.__name__]
