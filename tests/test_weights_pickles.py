"""Pickles are read as plain data and tensors; code is refused by name."""

import collections
import os
import pickle

import numpy as np
import pytest
from torch_files import Name, Storage, Tensor, refusal, tensor, write

from ldm_jax.weights.errors import WeightsError
from ldm_jax.weights.files import read_torch

both_layouts = pytest.mark.parametrize("layout", ["zip", "legacy"])


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


def grid():
  return np.arange(12, dtype=np.float32).reshape(3, 4)


class Reduced:
  """Pickles as a call, with a state to be set afterwards if there is one."""

  def __init__(self, name, arguments, *state):
    self.call = name, arguments, *state

  def __reduce_ex__(self, protocol):
    return self.call


PARAMETER = Name("torch.nn.parameter", "Parameter")


@pytest.mark.parametrize(
  "wrap",
  [
    lambda x: Reduced(
      Name("torch._utils", "_rebuild_parameter"),
      (x, True, collections.OrderedDict()),
    ),
    lambda x: Reduced(PARAMETER, (x,), (True, False, None)),  # torch 0.2
    lambda x: Reduced(PARAMETER, (), (x, None, None, True, False)),  # torch 0.1
  ],
)
def test_parameters_of_all_ages_are_their_tensors(path, wrap):
  write("legacy", path, {"a": wrap(tensor(grid()))})
  np.testing.assert_array_equal(read_torch(path)["a"], grid())


def test_the_oldest_tensors_have_four_arguments(path):
  """As in torchvision's vgg16-397923af.pth (tinygrad pull request 13253)."""
  rebuild = Name("torch._utils", "_rebuild_tensor")
  call = Reduced(rebuild, (Storage(grid()), 0, (3, 4), (4, 1)))
  write("legacy", path, {"a": call})
  np.testing.assert_array_equal(read_torch(path)["a"], grid())


class Attack:
  """Calls a function when it is unpickled by pickle itself."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@both_layouts
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, getattr, open])
def test_code_is_refused_by_name_and_never_run(
  path, layout, protocol, function
):
  sentinel = path.with_name("sentinel")
  attack = Attack(function, f"touch {sentinel}")
  data = pickle.dumps(attack, protocol)
  write(layout, path, {}, data=data)
  module = {"builtins": "(builtins|__builtin__)"}.get(
    function.__module__, function.__module__
  )
  with pytest.raises(
    WeightsError, match=rf"refused global {module}\.{function.__name__}"
  ):
    read_torch(path)
  assert not sentinel.exists()


@both_layouts
@pytest.mark.parametrize(
  "data, words",
  [
    (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
    (b"\x80\x02ccollections\nOrderedDict\n}b.", "refused to set the state"),
    (b"\x80\x02]]\x85R.", "calls what is not a function"),
    (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls what is not a function"),
    (b"(iposix\nsystem\n.", "refused pickle opcode INST posix system"),
    (b"\x80\x02}))s.", "a dictionary key is a tuple"),
    (b"\x80\x02\x8b\xff\xff\xff\x7f.", "malformed pickle"),
    (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "malformed pickle"),
    (b"\x80\x02h\x07.", "malformed pickle"),
    (b"\x80\x02.", "malformed pickle"),
    (b"\x80\x02].", "not a state dict"),
  ],
)
def test_a_forged_pickle_is_refused(path, layout, data, words):
  write(layout, path, {}, data=data)
  assert words in refusal(path)


@both_layouts
@pytest.mark.parametrize(
  "shape, strides, offset",
  [
    ((255,), (1,), 0),
    ((4,), (1,), 1),
    ((2, 2), (3, 1), 0),
    ((1,), (1,), 4),
    ((), (), 4),
    ((5,), (0,), 0),  # a view that repeats itself: small file, endless array
    ((2,), (-1,), 1),
    ((-1,), (1,), 0),
    ((2,), (1,), -1),
    ((2,), (1, 1), 0),
    ((2**40, 2**40, 0), (0, 0, 0), 0),
    ((1,) * 33, (1,) * 33, 0),
    ((True,), (1,), 0),
  ],
)
def test_no_tensor_reaches_outside_its_storage(
  path, layout, shape, strides, offset
):
  window = Tensor(Storage(np.zeros(4, np.float32)), shape, strides, offset)
  write(layout, path, {"a": window})
  message = refusal(path)
  assert "reads past its storage" in message or "malformed tensor" in message


def test_lazy_bits_are_refused(path):
  """torch marks conjugated and negated views so, without changing values."""
  window = Tensor(Storage(grid()), (3, 4), (4, 1), extra=({"neg": True},))
  write("zip", path, {"a": window})
  assert "lazy bits" in refusal(path)
