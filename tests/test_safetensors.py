"""safetensors files are exact, and only accessed tensors take memory."""

import json
import pathlib
import re

import ml_dtypes
import numpy as np
import pytest
import torch_files
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ldm_jax.errors import WeightsError
from ldm_jax.weights.mmap_files import release_pages
from ldm_jax.weights.safetensors_files import (
  DTYPE_NAMES,
  metadata,
  read_safetensors,
  write_safetensors,
)

STATUS = pathlib.Path("/proc/self/status")
DTYPES = [
  np.dtype(getattr(ml_dtypes, name, name)) for name in DTYPE_NAMES.values()
]
EIGHT_BITS = [d for d in DTYPES if d.name.startswith("float8")]


@pytest.fixture
def path(tmp_path):
  return tmp_path / "model.safetensors"


def bits(dtype, shape=(3, 4), seed=0):
  """Random values of a dtype: booleans, or any bytes for the others."""
  rng = np.random.default_rng(seed)
  high = 2 if dtype.kind == "b" else 256
  size = (*shape, dtype.itemsize)
  return rng.integers(high, size=size, dtype=np.uint8).view(dtype)[..., 0]


def assert_same(array, expected):
  assert array.dtype == expected.dtype and array.shape == expected.shape
  assert array.tobytes() == expected.tobytes()


def forge(path, header, data=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(length.to_bytes(8, "little") + text + data)


def refusal(path, read=read_safetensors):
  with pytest.raises(WeightsError) as caught:
    read(path)
  message = str(caught.value)
  assert message.startswith(str(path)) and "\n" not in message
  return message


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_bit_for_bit(path, dtype):
  shapes = [(3, 4), (), (0, 3), (1,), (5, 1, 2)]
  tensors = {str(s): bits(dtype, s, seed=n) for n, s in enumerate(shapes)}
  write_safetensors(path, tensors)
  arrays = read_safetensors(path)
  assert arrays.keys() == tensors.keys()
  for name, array in arrays.items():
    assert_same(array, tensors[name])
    assert not array.flags.writeable or not array.size


@pytest.mark.parametrize(
  "dtype", [d for d in DTYPES if d not in EIGHT_BITS], ids=str
)
def test_the_library_reads_written_files(path, dtype):
  tensors = {"a": bits(dtype), "b": bits(dtype, (6, 2)).T}
  write_safetensors(path, tensors, metadata={"words": "\u00e9"})
  for name, array in load_file(path).items():
    assert_same(array, tensors[name])
  with safe_open(path, "numpy") as file:
    assert file.metadata() == {"words": "\u00e9"} == metadata(path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_files_of_the_library_are_read(path, dtype):
  tensors = {
    "a": bits(dtype),
    "b": bits(np.dtype("f8")),
    "c": bits(dtype, (7,)),
  }
  save_file(tensors, path)
  for name, array in read_safetensors(path).items():
    assert_same(array, tensors[name])
  assert metadata(path) == {}


def test_written_bytes_equal_those_of_the_library(path, tmp_path):
  tensors = {f"\u00e9\n{d.name}": bits(d) for d in reversed(DTYPES)}
  tensors |= {name: bits(np.dtype("f4")) for name in ("b", "c", "a", "B")}
  write_safetensors(path, tensors)
  save_file(tensors, tmp_path / "other", {"format": "pt"})
  assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_arrays_of_any_memory_layout_are_written_in_c_order(path):
  grid = bits(np.dtype("f4"), (4, 6))
  tensors = {"t": grid.T, "w": grid[::2, 1:3], "big": grid.astype(">f4")}
  write_safetensors(path, tensors)
  for name, array in read_safetensors(path).items():
    np.testing.assert_array_equal(array, tensors[name])


def test_tensors_written_are_aligned_and_unaligned_ones_are_read(path):
  tensors = {d.name: bits(d, (3,)) for d in DTYPES}
  write_safetensors(path, tensors)
  assert all(a.flags.aligned for a in read_safetensors(path).values())
  numbers = bits(np.dtype("f4"), (2,))
  entry = {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}
  byte = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
  forge(path, {"a": entry, "b": byte}, b"x" + numbers.tobytes())
  assert_same(read_safetensors(path)["a"], numbers)


class Lost:
  """An array that raises when its values are read."""

  dtype, shape = np.dtype("f4"), (2,)

  def __array__(self, dtype=None, copy=None):
    raise OSError("the disk is missing")


def test_a_file_is_replaced_only_by_a_complete_one(path):
  """A failed write leaves the old file; arrays that were read stay valid."""
  grid = bits(np.dtype("f4"))
  write_safetensors(path, {"a": grid})
  before = read_safetensors(path)["a"]
  with pytest.raises(WeightsError, match="'b' is complex128"):
    write_safetensors(path, {"a": -grid, "b": np.zeros(2, complex)})

  with pytest.raises(OSError, match="missing"):
    write_safetensors(path, {"a": -grid, "b": Lost()})
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  assert_same(read_safetensors(path)["a"], grid)
  write_safetensors(path, {"a": -grid})
  assert_same(before, grid)
  assert_same(read_safetensors(path)["a"], -grid)


@pytest.mark.parametrize(
  "tensors, words, message",
  [
    ({"__metadata__": np.zeros(1)}, {}, "cannot be named '__metadata__'"),
    ({3: np.zeros(1)}, {}, "cannot be named 3"),
    ({"a": np.array(["x"])}, {}, "'a' is str"),
    ({"a": np.array([None])}, {}, "'a' is object"),
    ({}, {"step": 3}, "only be strings"),
  ],
)
def test_what_the_format_lacks_is_refused(path, tensors, words, message):
  # Without the types that the tests check, as a user runs it.
  write = getattr(write_safetensors, "__wrapped__", write_safetensors)
  with pytest.raises(WeightsError, match=message):
    write(path, tensors, metadata=words)
  assert not path.exists()


def test_a_file_truncated_anywhere_is_refused(path):
  write_safetensors(path, {d.name: bits(d) for d in DTYPES})
  whole = path.read_bytes()
  for length in [*range(0, len(whole) - 1, 7), len(whole) - 1]:
    path.write_bytes(whole[:length])
    assert refusal(path)
  path.write_bytes(whole + b"x")
  assert "end at" in refusal(path)


def test_a_file_with_a_damaged_byte_is_read_or_refused(path):
  write_safetensors(path, {d.name: bits(d) for d in DTYPES})
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  length = int.from_bytes(whole[:8], "little") + 8
  for position in rng.integers(length, size=400):
    damaged = bytearray(whole)
    damaged[position] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      arrays = read_safetensors(path)
    except WeightsError as error:
      assert "\n" not in str(error)
      continue
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ENTRY = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
  "header, data, words",
  [
    ({"a": GOOD}, bytes(7), "0 to 8 of 7"),
    ({"a": GOOD}, bytes(9), "end at 8 of 9"),
    ({"a": GOOD | {"data_offsets": [8, 16]}}, bytes(16), "8 to 16 of 16"),
    ({"a": GOOD | {"data_offsets": [8, 0]}}, bytes(8), "malformed entry"),
    ({"a": GOOD | {"data_offsets": [-8, 0]}}, bytes(8), "malformed entry"),
    ({"a": GOOD | {"data_offsets": [0.0, 8]}}, bytes(8), "malformed entry"),
    ({"a": GOOD | {"data_offsets": [0, 8, 8]}}, bytes(8), "malformed entry"),
    ({"a": GOOD | {"data_offsets": [0, 2**60]}}, bytes(8), "malformed entry"),
    ({"a": GOOD, "b": GOOD}, bytes(8), "'b' lies at 0 to 8"),
    ({"a": GOOD | {"shape": [3]}}, bytes(8), "expected 12"),
    ({"a": GOOD | {"shape": [1, 1]}}, bytes(8), "expected 4"),
    ({"a": GOOD | {"shape": [-2]}}, bytes(8), "invalid size"),
    ({"a": GOOD | {"shape": [2.0]}}, bytes(8), "invalid size"),
    ({"a": GOOD | {"shape": [True, 2]}}, bytes(8), "invalid size"),
    ({"a": GOOD | {"shape": 2}}, bytes(8), "malformed entry"),
    ({"a": GOOD | {"shape": [1] * 33}}, bytes(8), "at most 32 sizes"),
    ({"a": GOOD | {"shape": [2**40] * 2}}, bytes(8), "too large"),
    (
      {"a": GOOD | {"shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}},
      b"",
      "too large",
    ),
    ({"a": GOOD | {"dtype": "F4"}}, bytes(8), "the dtype 'F4'"),
    ({"a": GOOD | {"dtype": 3}}, bytes(8), "malformed entry"),
    ({"a": GOOD | {"more": 3}}, bytes(8), "malformed entry"),
    ({"a": {"dtype": "F32"}}, b"", "malformed entry"),
    ({"a": [1, 2]}, b"", "malformed entry"),
    ({"__metadata__": {"a": 1}}, b"", "not a dictionary of strings"),
    ({"__metadata__": "a"}, b"", "not a dictionary of strings"),
    ([1], b"", "not a JSON object"),
    (b"", b"", "not a JSON object"),
    (b' {"a": 1}', b"", "not a JSON object"),
    (b"{", b"", "JSON is malformed"),
    (b'{"a": \xff}', b"", "JSON is malformed"),
    (b"{}\0\0", b"", "JSON is malformed"),
    (b'{"a": ' + b"[" * 10**6, b"", "JSON is malformed"),
    (b'{"a": ' + b"9" * 10**4 + b"}", b"", "JSON is malformed"),
    (b'{"a":%b,"a":%b}' % (ENTRY, ENTRY), bytes(8), "'a' is twice"),
    (b'{"a":{"dtype":1,"dtype":2}}', b"", "'dtype' is twice"),
  ],
)
def test_a_forged_header_is_refused(path, header, data, words):
  forge(path, header, data)
  assert words in refusal(path)


@pytest.mark.parametrize("length", [3, 2**24, 2**32, 2**63, 2**64 - 1])
def test_a_header_of_another_length_is_refused(path, length):
  forge(path, {"a": GOOD}, bytes(8), length)
  for read in (read_safetensors, metadata):
    assert "header" in refusal(path, read) or "JSON" in refusal(path, read)


def test_a_huge_header_is_refused_unread(path):
  with path.open("wb") as file:
    file.write((10**9).to_bytes(8, "little") + b"{")
    file.truncate(2 * 10**9)
  with torch_files.little_memory(2**20):
    assert "at most 100000000" in refusal(path)


def test_one_tensor_of_a_huge_file_is_read_without_the_others(path):
  """A sparse file of six gigabytes, of which little is read."""
  numbers, size = bits(np.dtype("f4")), 6 * 2**30
  end = size + numbers.nbytes
  huge = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
  entry = {"dtype": "F32", "shape": [3, 4], "data_offsets": [size, end]}
  text = json.dumps({"huge": huge, "a": entry}).encode()
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    file.seek(size, 1)
    file.write(numbers.tobytes())
  with torch_files.little_memory(2 * 2**20):
    arrays = read_safetensors(path)
    assert_same(arrays["a"], numbers)
    assert arrays["huge"].size == size // 2 and not arrays["huge"][-1]


@pytest.mark.skipif(
  not STATUS.exists(), reason="only Linux reports the memory of a mapping"
)
def test_released_pages_take_no_memory(path):
  def megabytes():
    (line,) = re.findall(r"RssFile:\s+(\d+) kB", STATUS.read_text())
    return int(line) / 1024

  numbers = np.arange(2**24, dtype=np.float32).reshape(4, -1)  # 64 MiB
  write_safetensors(path, {"a": numbers, "b": numbers[:, :5]})
  arrays = read_safetensors(path)
  before = megabytes()
  assert arrays["a"].max() == numbers.max()
  assert megabytes() - before > 60
  release_pages(arrays["a"].T)
  assert megabytes() - before < 4
  for name, array in arrays.items():
    assert_same(array, numbers if name == "a" else numbers[:, :5])
  release_pages(numbers)  # not mapped: nothing to do
  assert numbers[3, -1] == 2**24 - 1


def test_writing_takes_the_memory_of_one_tensor(path):
  """Of transposed arrays, as kernels are: one copy at a time."""
  grid = np.ones((512, 1024), np.float32)  # 2 MiB
  with torch_files.little_memory(2 * grid.nbytes):
    write_safetensors(path, {str(n): grid.T for n in range(20)})
  assert path.stat().st_size > 20 * grid.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_reads_and_writes_equal_files(path, dtype):
  torch = pytest.importorskip("torch")
  files = pytest.importorskip("safetensors.torch")
  theirs = getattr(torch, dtype.name)
  numbers = bits(dtype, (4, 6))
  value = torch.tensor(numbers.view(np.uint8)).view(theirs)
  files.save_file({"a": value, "b": value[0].clone()}, path)
  arrays = read_safetensors(path)
  assert_same(arrays["a"], numbers)
  assert_same(arrays["b"], numbers[0])
  write_safetensors(path, {"t": numbers.T, "0": numbers[0, 0]})
  loaded = files.load_file(path)
  assert torch.equal(
    loaded["t"].contiguous().view(torch.uint8),
    value.T.contiguous().view(torch.uint8),
  )
  assert loaded["0"].dtype == theirs and loaded["0"].shape == ()
