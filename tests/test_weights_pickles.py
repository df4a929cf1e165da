"""Pickles are read as plain data and tensors; code is an error."""

import collections
import os
import pickle
import sys

import numpy as np
import pytest
from torch_files import (
  Name,
  Reduced,
  Storage,
  Tensor,
  refusal,
  tensor,
  write,
)

from ldm_jax.errors import WeightsError
from ldm_jax.weights.files import (
  read_global_step,
  read_pickled,
  read_tensors,
  read_torch,
)
from ldm_jax.weights.torch.stub_objects import StubObject

both_layouts = pytest.mark.parametrize("layout", ["zip", "legacy"])


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


def grid():
  return np.arange(12, dtype=np.float32).reshape(3, 4)


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
def test_parameters_of_all_torch_versions_are_read_as_tensors(path, wrap):
  write("legacy", path, {"a": wrap(tensor(grid()))})
  np.testing.assert_array_equal(read_torch(path)["a"], grid())


def test_the_oldest_tensors_have_four_arguments(path):
  """As in torchvision's vgg16-397923af.pth (tinygrad pull request 13253)."""
  rebuild = Name("torch._utils", "_rebuild_tensor")
  call = Reduced(rebuild, (Storage(grid()), 0, (3, 4), (4, 1)))
  write("legacy", path, {"a": call})
  np.testing.assert_array_equal(read_torch(path)["a"], grid())


class Attack:
  """Calls a function when pickle itself loads it."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@both_layouts
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, getattr, open])
def test_functions_are_refused_by_name_and_never_called(
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
def test_a_tensor_outside_its_storage_is_refused(
  path, layout, shape, strides, offset
):
  window = Tensor(Storage(np.zeros(4, np.float32)), shape, strides, offset)
  write(layout, path, {"a": window})
  message = refusal(path)
  assert "reads past its storage" in message or "malformed tensor" in message


def test_lazy_bits_are_refused(path):
  """They mark conjugated and negated views, whose values are unchanged."""
  window = Tensor(Storage(grid()), (3, 4), (4, 1), extra=({"neg": True},))
  write("zip", path, {"a": window})
  assert "lazy bits" in refusal(path)


@both_layouts
def test_a_checkpoint_of_lightning_gives_its_state_dict_and_step(path, layout):
  """With callbacks, schedulers and settings, as of pytorch_lightning 1."""
  callback = Name("pytorch_lightning.callbacks.model_checkpoint", "Checkpoint")
  score = Reduced(
    Name("numpy.core.multiarray", "scalar"),
    (
      Reduced(Name("numpy", "dtype"), ("f8", 0, 1), (3, "<", None)),
      b"12345678",
    ),
  )
  settings = Reduced(
    Name("omegaconf.dictconfig", "DictConfig"), (), {"_content": {"a": [1]}}
  )
  attributes = Name("pytorch_lightning.utilities.parsing", "AttributeDict")
  value = {
    "epoch": 4,
    "global_step": 875000,
    "state_dict": collections.OrderedDict(a=tensor(grid())),
    "callbacks": {callback: {"best": score, "at": tensor(grid())}},
    "optimizer_states": [{"state": {0: {"step": 1}}, "betas": (0.9, 0.99)}],
    "hyper_parameters": Reduced(attributes, (), None, None, [("lr", 1e-4)]),
    "settings": settings,
    "words": Reduced(Name("lightning.x", "Words"), (), None, ["a", "b"]),
  }
  write(layout, path, value)
  arrays = read_torch(path)
  assert list(arrays) == ["a"]
  np.testing.assert_array_equal(arrays["a"], grid())
  assert read_global_step(path) == 875000
  plain = read_pickled(path)
  assert plain["callbacks"].keys() == {StubObject(callback.text_name)}
  assert plain["settings"] == StubObject("omegaconf.dictconfig.DictConfig")
  assert plain["hyper_parameters"] == StubObject(attributes.text_name)
  assert plain["words"] == StubObject("lightning.x.Words")


@pytest.mark.parametrize("step", [None, "7", 7.0, True])
def test_a_step_that_is_not_an_int_is_none(path, step):
  write("zip", path, {"state_dict": {}, "global_step": step})
  assert read_global_step(path) is None


@both_layouts
def test_files_of_textual_inversion_are_read_nested(path, layout):
  parameters = Reduced(
    Name("torch.nn.modules.container", "ParameterDict"),
    (),
    {"_parameters": {"*": tensor(grid())}, "_hooks": {}},
  )
  value = {
    "string_to_param": parameters,
    "string_to_token": {"*": 265},
    "name": "cat",
    "steps": [1, (2.5, None, True)],
    "shared": {"a": tensor(grid())},
  }
  write(layout, path, value)
  plain = read_pickled(path)
  np.testing.assert_array_equal(plain["string_to_param"].pop("*"), grid())
  np.testing.assert_array_equal(plain["shared"].pop("a"), grid())
  assert plain == {
    "string_to_param": {},
    "string_to_token": {"*": 265},
    "name": "cat",
    "steps": [1, (2.5, None, True)],
    "shared": {},
  }


def text(words):
  return b"X" + len(words).to_bytes(4, "little") + words.encode()


# Pickles that run a command, in the machine language of pickle: how, by which
# name they are refused, and the bytes before and after the command.
ATTACKS = [
  ("a call", "posix.system", b"cposix\nsystem\n", b"\x85R."),
  (
    "words made code",
    "builtins.eval",
    b"cbuiltins\neval\n" + text("__import__('os').system") + b"\x85R",
    b"\x85R.",
  ),
  (
    "getattr",
    "builtins.getattr",
    b"cbuiltins\ngetattr\ncbuiltins\n__import__\n"
    + (text("os") + b"\x85R" + text("system") + b"\x86R"),
    b"\x85R.",
  ),
  (
    "a chain of attributes, which pickle follows",
    "os.path.os.system",
    b"\x80\x04" + text("os") + text("path.os.system") + b"\x93",
    b"\x85R.",
  ),
  (
    "the state of an object that is inert here",
    "posix.system",
    b"cargparse\nNamespace\n)R}"
    + (text("__setstate__") + b"cposix\nsystem\nsb"),
    b"b.",
  ),
  ("INST", "opcode INST posix system", b"(", b"iposix\nsystem\n."),
  ("OBJ", "posix.system", b"(cposix\nsystem\n", b"o."),
]


@both_layouts
@pytest.mark.parametrize(
  "name, before, after",
  [attack[1:] for attack in ATTACKS],
  ids=[attack[0] for attack in ATTACKS],
)
def test_attacks_that_work_on_pickle_are_refused(
  path, layout, name, before, after
):
  canary = path.with_name("canary")
  attack = before + text(f"touch {canary}") + after
  pickle.loads(attack)
  assert canary.exists(), "this is no attack"
  canary.unlink()
  within = b"\x80\x02}" + text("state_dict") + attack[:-1] + b"s."
  for data in (attack, within):
    write(layout, path, {}, data=data)
    for read in (read_torch, read_tensors, read_pickled, read_global_step):
      with pytest.raises(WeightsError, match=f"refused.* {name}"):
        read(path)
  assert not canary.exists()


@both_layouts
def test_stubbed_classes_are_never_imported(path, layout, monkeypatch):
  """Even if their package is installed."""
  canary = path.with_name("canary")
  package = path.with_name("pytorch_lightning.py")
  package.write_text(f"open({str(canary)!r}, 'w')\ndef call(*_): import here\n")
  monkeypatch.syspath_prepend(path.parent)
  call = Reduced(Name("pytorch_lightning", "call"), ("a",), {"b": 1}, [2])
  write(layout, path, {"state_dict": {}, "callbacks": call})
  assert not read_torch(path)
  assert read_pickled(path)["callbacks"] == StubObject("pytorch_lightning.call")
  assert "pytorch_lightning" not in sys.modules and not canary.exists()


def test_a_stub_is_not_a_tensor(path):
  write("zip", path, {"a": Name("lightning.pytorch", "Trainer")})
  assert "'a' is of type lightning.pytorch.Trainer" in refusal(path)


@pytest.mark.parametrize(
  "name",
  ["pytorch_lightnings.x", "builtins.dict.get", "ldm.util.make", "torch"],
)
def test_names_similar_to_those_of_stubs_are_refused(path, name):
  module, _, name = name.rpartition(".")
  write("zip", path, {"a": Name(module, name)})
  assert f"refused global {module}.{name}" in refusal(path)


def test_the_error_is_one_line_for_any_name(path):
  data = b"\x80\x04" + text("a\nb\x1b[2J") + text("c" * 5000) + b"\x93."
  write("zip", path, {}, data=data)
  assert len(refusal(path)) < 500


def test_data_that_contains_itself_is_refused(path):
  write("zip", path, {}, data=b"\x80\x02]q\x00h\x00a.")
  with pytest.raises(WeightsError, match="nested over"):
    read_pickled(path)


@both_layouts
def test_numpy_arrays_are_read(path, layout):
  rng = np.random.default_rng(5)
  arrays = {
    "mu": rng.standard_normal(5),
    "sigma": np.asfortranarray(rng.standard_normal((4, 5))),
    "counts": np.arange(3, dtype=">i4"),
    "none": np.zeros((0, 3), np.float32),
    "seen": np.array([True, False]),
  }
  write(layout, path, arrays)
  for name, found in read_pickled(path).items():
    np.testing.assert_array_equal(found, arrays[name])
    assert found.shape == arrays[name].shape


RECONSTRUCT = Name("numpy.core.multiarray", "_reconstruct")
DTYPE = Name("numpy", "dtype")


def spelled(text, how="latin1"):
  return Reduced(Name("_codecs", "encode"), (text, how))


@pytest.mark.parametrize(
  "state",
  [
    None,
    (1, (2,), "f8", False, spelled("x" * 16)),
    (1, (2,), Reduced(DTYPE, ("O8", 0, 1)), False, spelled("x" * 16)),
    (1, (2,), Reduced(DTYPE, ("f8", 0, 1)), False, spelled("x" * 15)),
    (1, (-2,), Reduced(DTYPE, ("f8", 0, 1)), False, spelled("x" * 16)),
    (1, (2,), Reduced(DTYPE, ("f8", 0, 1)), False, spelled("\u20ac" * 16)),
    (1, (2,), Reduced(DTYPE, ("f8", 0, 1)), False, "x" * 16),
    (1, (2,), Reduced(DTYPE, (["f8"], 0, 1)), False, spelled(["x"])),
  ],
)
def test_malformed_numpy_arrays_are_refused(path, state):
  array = Reduced(RECONSTRUCT, (Name("numpy", "ndarray"), (0,)), state)
  write("zip", path, {"mu": array})
  with pytest.raises(WeightsError, match=r"malformed|refused|invalid size"):
    read_pickled(path)


def test_shared_data_is_converted_once(path):
  """Thirty lists, each ten times in the next: 10^30 leaves."""
  grow = b"q\x00" + b"]" + b"(" + b"h\x00" * 10 + b"e"
  write("zip", path, {}, data=b"\x80\x02]" + grow * 30 + b".")
  value = read_pickled(path)
  assert len(value) == 10 and value[0] is value[9]


ENDLESS = {
  "deep": b")" + b"\x85" * 10**4 + b"q\x00",
  "wide": b"()" + (b"q\x00(" + b"h\x00" * 9 + b"t") * 40 + b"q\x00t",
}


@pytest.mark.parametrize("endless", ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_size_of_endless_nested_data_is_refused(path, place, endless):
  """Printed it would have 9^40 items, or exhaust the stack."""
  sizes = [b"K\x00", b"K\x01\x85", b"K\x01\x85"]  # offset, shape, strides
  sizes[place] = b"h\x00"
  storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n"
  storage += text("0") + text("cpu") + b"K\x04tQ"
  rebuild = b"ctorch._utils\n_rebuild_tensor\n("
  data = b"\x80\x02" + endless + rebuild + storage + b"".join(sizes) + b"tR."
  write("zip", path, {}, data=data)
  assert "malformed tensor" in refusal(path)


def test_a_list_of_pairs_makes_one_dictionary(path):
  """A small file that refers to a long list often must not fill the memory."""
  pairs = b"](" + (b"](" + text("a") + b"K\x01e") + b"eq\x00"
  made = b"ccollections\nOrderedDict\nh\x00\x85R"
  data = b"\x80\x02(" + pairs + made + made + b"t."
  write("zip", path, {}, data=data)
  assert read_pickled(path) == ([], {"a": 1}, {})


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [True, False])
def test_parameter_dicts_of_torch_are_read(path, is_zip):
  torch = pytest.importorskip("torch")
  vectors = torch.randn(2, 5)
  module = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
  value = {"string_to_param": module, "string_to_token": {"*": vectors[0]}}
  torch.save(value, path, _use_new_zipfile_serialization=is_zip)
  plain = read_pickled(path)
  np.testing.assert_array_equal(plain["string_to_param"]["*"], vectors)
  np.testing.assert_array_equal(plain["string_to_token"]["*"], vectors[0])
