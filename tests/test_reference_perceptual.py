"""Comparisons with torch and the lpips package: files, values, gradients."""

import collections
import io
import json
import pathlib
import pickletools
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
from PIL import Image

from ldm_jax.cli import evaluate
from ldm_jax.nn.discriminator import PatchDiscriminator, hinge_loss
from ldm_jax.nn.encoders.lpips import LPIPS, VGG16
from ldm_jax.weights.files import read_torch
from ldm_jax.weights.naming.convert import (
  convert,
  parse_table,
  read_table,
  revert,
)

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

both_layouts = pytest.mark.parametrize("is_zip", [True, False])


def save(value, path, is_zip=True):
  torch.save(value, path, _use_new_zipfile_serialization=is_zip)


def every_kind():
  """Nine number formats, and every shape that a storage can be seen in."""
  grid = torch.randn(4, 6)
  values = collections.OrderedDict(
    grid=grid,
    transposed=grid.T,
    window=grid[1:3, ::2],
    scalar=torch.tensor(3.5),
    empty=torch.empty(0, 3),
    parameter=torch.nn.Parameter(torch.randn(2)),
  )
  for name in torch_files.KINDS:
    values[name] = (torch.randn(3, 5) * 10).to(getattr(torch, name))
  return values


@both_layouts
@pytest.mark.parametrize("wrap", [dict, lambda d: {"state_dict": d, "step": 3}])
def test_files_of_torch_return_bit_for_bit(tmp_path, is_zip, wrap):
  values = every_kind()
  save(wrap(values), tmp_path / "a.pth", is_zip)
  arrays = read_torch(tmp_path / "a.pth")
  assert arrays.keys() == values.keys()
  for name, value in values.items():
    value, array = value.detach(), arrays[name]
    if value.dtype == torch.bfloat16:  # which torch cannot turn into numpy
      value, array = value.view(torch.int16), array.view(np.int16)
    np.testing.assert_array_equal(array, value.numpy(), strict=True)


def opcodes(data, skip=0):
  """The opcodes of one pickle after others, with storage keys made alike."""
  stream = io.BytesIO(data)
  for _ in range(skip):
    list(pickletools.genops(stream))
  is_key = lambda x: isinstance(x, str) and x.isdigit()
  return [
    (opcode.name, "key" if is_key(argument) else argument)
    for opcode, argument, _ in pickletools.genops(stream)
  ]


def test_our_writer_pickles_exactly_what_torch_does(tmp_path):
  grid = np.arange(12, dtype=np.float32).reshape(3, 4)
  ours = {"a": torch_files.tensor(grid), "b": torch_files.tensor(grid.T)}
  theirs = {"a": torch.tensor(grid), "b": torch.tensor(grid).clone().T}
  save({"state_dict": theirs, "step": 7}, tmp_path / "a.pth")
  with zipfile.ZipFile(tmp_path / "a.pth") as archive:
    expected = archive.read("a/data.pkl")
  assert torch_files.pickled({"state_dict": ours, "step": 7})[0] == expected

  save({"state_dict": theirs}, tmp_path / "b.pth", is_zip=False)
  torch_files.write_legacy(tmp_path / "c.pth", {"state_dict": ours})
  for pickle in range(5):
    b, c = (opcodes((tmp_path / f"{n}.pth").read_bytes(), pickle) for n in "bc")
    assert b == c


def random_vgg16(**_):
  """torchvision's vgg16, but for a classifier of no size, with random weights.

  He-normal as torchvision's own start, and biases that are not zero.
  """
  torch.manual_seed(0)
  layers, before = [], 3
  for stage, (width, depth) in enumerate(
    [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
  ):
    layers += [torch.nn.MaxPool2d(2, 2)] if stage else []
    for _ in range(depth):
      conv = torch.nn.Conv2d(before, width, 3, padding=1)
      torch.nn.init.kaiming_normal_(conv.weight)
      torch.nn.init.normal_(conv.bias, std=0.1)
      layers += [conv, torch.nn.ReLU()]
      before = width
  layers += [torch.nn.MaxPool2d(2, 2)]
  model = torch.nn.Module()
  model.features = torch.nn.Sequential(*layers)
  blank = [torch.nn.Identity()] * 2
  one = lambda: torch.nn.Linear(1, 1)
  model.classifier = torch.nn.Sequential(one(), *blank, one(), *blank, one())
  return model


@pytest.fixture
def lpips(monkeypatch):
  """The lpips package with a random trunk in torchvision's place."""
  torchvision = types.ModuleType("torchvision")
  torchvision.models = types.SimpleNamespace(vgg16=random_vgg16)
  monkeypatch.setitem(sys.modules, "torchvision", torchvision)
  package = pytest.importorskip("lpips")
  yield package
  for name in [n for n in sys.modules if n.split(".")[0] == "lpips"]:
    del sys.modules[name]  # it keeps the stand-in


@pytest.fixture
def trunk(tmp_path):
  save(random_vgg16().state_dict(), tmp_path / "vgg16-397923af.pth", False)
  tensors = read_torch(tmp_path / "vgg16-397923af.pth")
  return convert(read_table("vgg16"), tensors)


def images(seed, size=(2, 70, 64, 3)):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, size).astype(np.float32)


def to_torch(array):
  return torch.tensor(np.asarray(array).transpose(0, 3, 1, 2))


def to_ours(tensor):
  return tensor.detach().numpy().transpose(0, 2, 3, 1)


def test_vgg16_equals_torch_at_every_tap(trunk):
  x = images(0)
  taps, theirs, value = [3, 8, 15, 22, 29], [], to_torch(x)
  for place, layer in enumerate(random_vgg16().features):
    value = layer(value)
    theirs += [to_ours(value)] if place in taps else []
  ours = jax.jit(VGG16().apply)({"params": trunk}, jnp.asarray(x))
  for ours_grad, other in zip(ours, theirs, strict=True):
    assert ours_grad.shape == other.shape
    assert np.linalg.norm(ours_grad - other) <= 1e-5 * np.linalg.norm(other)


def test_lpips_and_its_slope_equal_the_package(lpips, trunk):
  model = lpips.LPIPS(net="vgg", verbose=False)
  weights = pathlib.Path(lpips.__file__).parent / "weights/v0.1/vgg.pth"
  params = convert(read_table("lpips"), read_torch(weights))
  params["trunk"] = trunk

  x, y = images(0), images(1)
  theirs = to_torch(x).requires_grad_()
  expected = model(theirs, to_torch(y)).flatten()
  expected.sum().backward()

  def distance(params, x):
    values = LPIPS().apply({"params": params}, x, jnp.asarray(y))
    return values.sum(), values

  gradients = jax.jit(jax.value_and_grad(distance, 1, has_aux=True))
  (_, values), slope = gradients(params, jnp.asarray(x))
  np.testing.assert_allclose(values, expected.detach(), atol=1e-6)
  error = np.abs(slope - to_ours(theirs.grad))
  assert error.max() <= 1e-4 * np.abs(slope).max()


def test_evaluate_measures_pairs_as_the_package_does(lpips, tmp_path, capsys):
  model = lpips.LPIPS(net="vgg", verbose=False)
  heads = pathlib.Path(lpips.__file__).parent / "weights/v0.1/vgg.pth"
  save(random_vgg16().state_dict(), tmp_path / "vgg16-397923af.pth", False)
  rng = np.random.default_rng(4)
  images = rng.integers(0, 256, (2, 3, 40, 48, 3), np.uint8)
  for name, folder in zip("ab", images, strict=True):
    (tmp_path / name).mkdir()
    for i, image in enumerate(folder):
      Image.fromarray(image).save(tmp_path / name / f"{i}.png")
  flags = [f"--lpips_trunk={tmp_path / 'vgg16-397923af.pth'}"]
  flags += [f"--lpips_heads={heads}", "--paired"]
  folders = [str(tmp_path / name) for name in "ab"]
  assert evaluate.main([*folders, *flags]) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  x, y = (to_torch(p.astype(np.float32) / 127.5 - 1) for p in images)
  with torch.no_grad():
    expected = float(model(x, y).mean())
  assert abs(found["lpips"] - expected) < 1e-6


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_the_heads_of_the_package_are_read_as_torch_reads_them(lpips, net):
  """They are in the legacy layout, written years ago."""
  path = pathlib.Path(lpips.__file__).parent / f"weights/v0.1/{net}.pth"
  expected = torch.load(path, "cpu", weights_only=True)
  arrays = read_torch(path)
  assert arrays.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(arrays[name], value.numpy(), strict=True)


def torch_discriminator(width, layers):
  """NLayerDiscriminator of taming-transformers, rebuilt from its figures."""
  conv = lambda *args, **kw: torch.nn.Conv2d(*args, 4, padding=1, **kw)
  act = lambda: torch.nn.LeakyReLU(0.2)
  parts, before = [conv(3, width, stride=2), act()], width
  for layer in range(1, layers + 1):
    after, stride = width * min(2**layer, 8), 2 if layer < layers else 1
    norm = torch.nn.BatchNorm2d(after)
    parts += [conv(before, after, stride=stride, bias=False), norm, act()]
    before = after
  model = torch.nn.Sequential(*parts, conv(before, 1))
  for name, parameter in model.named_parameters():
    is_scale = parameter.ndim == 1 and "bias" not in name
    torch.nn.init.normal_(parameter, float(is_scale), 0.1)
  return model.train()


def discriminator_table(layers):
  rows = ["conv0/kernel\t0.weight\tconv", "conv0/bias\t0.bias\tsame"]
  for layer in range(1, layers + 1):
    place = 3 * layer - 1
    rows += [
      f"conv{layer}/kernel\t{place}.weight\tconv",
      f"norm{layer}/scale\t{place + 1}.weight\tsame",
      f"norm{layer}/bias\t{place + 1}.bias\tsame",
    ]
  last, place = layers + 1, 3 * layers + 2
  rows += [f"conv{last}/kernel\t{place}.weight\tconv"]
  rows += [f"conv{last}/bias\t{place}.bias\tsame"]
  return parse_table("\n".join([*rows, "-\t*running_*\tignore"]))


@pytest.mark.parametrize("layers", [2, 3])
def test_the_discriminator_and_its_gradients_equal_torch(tmp_path, layers):
  torch.manual_seed(0)
  model, table = torch_discriminator(16, layers), discriminator_table(layers)
  save(model.state_dict(), tmp_path / "d.pth")
  tensors = read_torch(tmp_path / "d.pth")
  tensors = {n: t for n, t in tensors.items() if "num_batches" not in n}
  params = jax.tree.map(jnp.asarray, convert(table, tensors))

  real, fake = images(0), images(1)
  theirs = model(to_torch(real)), model(to_torch(fake))
  relu = torch.nn.functional.relu
  loss = (relu(1 - theirs[0]).mean() + relu(1 + theirs[1]).mean()) / 2
  loss.backward()

  discriminator = PatchDiscriminator(width=16, layers=layers)

  @jax.jit
  @jax.value_and_grad
  def ours(params):
    logits = [
      discriminator.apply({"params": params}, jnp.asarray(x))
      for x in (real, fake)
    ]
    return hinge_loss(*logits)

  value, gradients = ours(params)
  logits = discriminator.apply({"params": params}, jnp.asarray(real))
  np.testing.assert_allclose(
    logits, to_ours(theirs[0]), rtol=1e-4, atol=1e-4 * float(logits.std())
  )
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  gradients = revert(table, gradients)
  for name, parameter in model.named_parameters():
    expected = parameter.grad.numpy()
    error = np.abs(gradients[name] - expected).max()
    assert error <= 1e-4 * max(np.abs(expected).max(), 1e-3), name
