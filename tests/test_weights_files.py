"""torch files are read bit for bit; anything else is a one-line error."""

import collections
import pickle
import zipfile

import numpy as np
import pytest
import torch_files
from flax import serialization
from safetensors.numpy import save_file as save_safetensors
from torch_files import Storage, Tensor, refusal, tensor, write

from ldm_jax.errors import WeightsError
from ldm_jax.weights.files import read_global_step, read_tensors, read_torch

both_layouts = pytest.mark.parametrize("layout", ["zip", "legacy"])


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.pth"


def grid(dtype=np.float32):
  numbers = np.random.default_rng(0).normal(size=(3, 4)) * 10
  return numbers.astype(dtype)


@both_layouts
@pytest.mark.parametrize("dtype", torch_files.DTYPES, ids=str)
def test_every_dtype_is_read_bit_for_bit(path, layout, dtype):
  write(layout, path, {"a": tensor(grid(dtype))})
  array = read_torch(path)["a"]
  assert array.dtype == dtype
  assert array.tobytes() == grid(dtype).tobytes()


@both_layouts
@pytest.mark.parametrize(
  "array",
  [
    np.float32(2.5),
    np.empty((0, 3), np.float32),
    grid().T,
    np.ones((2, 1, 3, 1), np.float32),
  ],
  ids=["0-d", "empty", "transposed", "ones"],
)
def test_every_shape_is_read(path, layout, array):
  write(layout, path, {"a": tensor(array)})
  np.testing.assert_array_equal(read_torch(path)["a"], array, strict=True)


@both_layouts
def test_views_of_one_storage_share_memory(path, layout):
  storage = Storage(grid())
  value = {
    "rows": Tensor(storage, (2, 4), (4, 1), 4),
    "column": Tensor(storage, (3,), (4,), 1),
  }
  write(layout, path, value)
  arrays = read_torch(path)
  np.testing.assert_array_equal(arrays["rows"], grid()[1:])
  np.testing.assert_array_equal(arrays["column"], grid()[:, 1])
  assert np.shares_memory(arrays["rows"], arrays["column"])
  assert not arrays["rows"].flags.writeable


@both_layouts
def test_a_nested_state_dict_is_read_without_its_metadata(path, layout):
  state = collections.OrderedDict(a=tensor(grid()))
  state._metadata = {"": {"version": 1}}
  write(layout, path, {"state_dict": state, "epoch": 3, "rates": [1e-4, None]})
  assert list(read_torch(path)) == ["a"]


@both_layouts
@pytest.mark.parametrize("count", [3, 5, 2**40])
def test_a_storage_of_another_length_than_declared_is_refused(
  path, layout, count
):
  storage = Storage(np.zeros(4, np.float32), count)
  write(layout, path, {"a": Tensor(storage, (2,), (1,))})
  assert "storage 0" in refusal(path)


@both_layouts
def test_a_file_truncated_anywhere_is_refused(path, layout):
  write(layout, path, {"a": tensor(grid()), "b": tensor(grid().T)})
  whole = path.read_bytes()
  for length in [*range(0, len(whole) - 1, 13), len(whole) - 1]:
    path.write_bytes(whole[:length])
    assert refusal(path)


@both_layouts
def test_a_file_with_a_damaged_byte_is_read_or_refused(path, layout):
  write(layout, path, {"a": tensor(grid()), "b": tensor(grid().T)})
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  for position in rng.integers(len(whole), size=400):
    damaged = bytearray(whole)
    damaged[position] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      arrays = dict(read_torch(path))
    except WeightsError:
      continue
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def test_damaged_values_in_a_zip_are_detected(path):
  write("zip", path, {"a": tensor(grid())})
  whole = path.read_bytes()
  start = whole.index(grid().tobytes())
  path.write_bytes(
    whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :]
  )
  assert "bad CRC-32 of 'archive/data/0'" in refusal(path)


def test_damage_to_one_tensor_does_not_affect_the_others(path):
  write("zip", path, {"a": tensor(grid()), "b": tensor(grid().T.copy())})
  whole = path.read_bytes()
  start = whole.index(grid().tobytes())
  path.write_bytes(
    whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :]
  )
  arrays = read_torch(path)
  np.testing.assert_array_equal(arrays["b"], grid().T)
  with pytest.raises(WeightsError, match=r"weights\.pth: damaged zip"):
    arrays["a"]


def test_a_member_name_that_is_not_text_is_refused(path):
  write("zip", path, {})
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr("archive/\u00e9", b"")  # sets the flag for UTF-8
  whole = path.read_bytes()
  path.write_bytes(whole.replace("\u00e9".encode(), b"\x85\x85"))
  assert "damaged zip" in refusal(path)


def test_a_compressed_member_is_refused(path):
  """A zip bomb of 200 KB can hold 200 MiB."""
  write("zip", path, {"a": tensor(grid())}, compression=zipfile.ZIP_DEFLATED)
  assert "compressed" in refusal(path)


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("other/data.pkl", b"", "2 members named data.pkl"),
    ("archive/data/../../up", b"", "leaves the archive"),
    ("/etc/passwd", b"", "leaves the archive"),
    ("archive/data/0", b"", "appears twice"),
  ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_unexpected_member_is_refused(path, name, content, words):
  write("zip", path, {"a": tensor(grid())})
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr(name, content)
  assert words in refusal(path)


def test_an_encrypted_member_is_refused(path):
  write("zip", path, {"a": tensor(grid())})
  whole = bytearray(path.read_bytes())
  whole[whole.index(b"PK\x01\x02") + 8] |= 1  # flag bits in the directory
  path.write_bytes(whole)
  assert "encrypted" in refusal(path)


def test_a_big_endian_file_is_refused(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", torch_files.pickled({})[0])
    archive.writestr("archive/byteorder", "big")
  assert "big-endian" in refusal(path)


@pytest.mark.parametrize(
  "content, words",
  [
    (b"", "0 bytes long"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"<!DOCTYPE html><title>403</title>", "web page"),
    (b'\x10\0\0\0\0\0\0\0{"a": {}}       ', "safetensors"),
    (b"\x81\xa1a\x01", "Flax msgpack"),
    (b"some words", "not a torch file"),
  ],
)
def test_the_error_names_another_type_of_file(path, content, words):
  path.write_bytes(content)
  assert words in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
  assert "no such file" in refusal(tmp_path / "absent.pth")
  assert "not a regular file" in refusal(tmp_path)


def test_what_is_not_a_tensor_is_named(path):
  write("zip", path, {"a": tensor(grid()), "epoch": 3})
  assert "'epoch' is of type int" in refusal(path)


def sparse_zip(path, text, count):
  """A zip64 file of two storages; the first is sparse."""
  size = count * 4
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", text)
    hole = zipfile.ZipInfo("archive/data/0")
    hole.file_size = hole.compress_size = size
    hole.header_offset, hole.CRC = archive.fp.tell(), 0
    archive.fp.write(hole.FileHeader())
    archive.fp.seek(size, 1)
    archive.start_dir = archive.fp.tell()
    archive.filelist.append(hole)
    archive.writestr("archive/data/1", grid().tobytes())


def sparse_legacy(path, text, count):
  write("legacy", path, {}, data=text)
  whole = path.read_bytes()
  end = pickle.dumps([], 2)
  assert whole.endswith(end)
  with path.open("wb") as file:
    file.write(whole.removesuffix(end) + pickle.dumps(["0", "1"], 2))
    file.write(count.to_bytes(8, "little"))
    file.seek(count * 4, 1)
    file.write(grid().size.to_bytes(8, "little") + grid().tobytes())


@pytest.mark.parametrize("layout", [sparse_zip, sparse_legacy])
def test_one_tensor_of_a_huge_file_is_read_without_the_others(path, layout):
  """A sparse file of five gigabytes, of which little is read."""
  count = 5 * 2**28
  huge = Storage(np.zeros(1, np.float32), count)
  value = {"huge": Tensor(huge, (count,), (1,)), "a": tensor(grid())}
  text, _ = torch_files.pickled(value, is_legacy=layout is sparse_legacy)
  layout(path, text, count)
  assert path.stat().st_size > 5 * 2**30
  with torch_files.little_memory(4 * 2**20):
    arrays = read_torch(path)
    np.testing.assert_array_equal(arrays["a"], grid())
    if layout is sparse_legacy:  # a zip's checksum would take a pass over it
      assert arrays["huge"].shape == (count,) and not arrays["huge"][-1]


@pytest.mark.parametrize(
  "name, content",
  [
    ("a.bin", lambda p: save_safetensors({"a": grid()}, p)),
    ("a.ckpt", lambda p: write("zip", p, {"a": tensor(grid())})),
    ("a.safetensors", lambda p: write("legacy", p, {"a": tensor(grid())})),
    ("a.pt", lambda p: p.write_bytes(serialization.to_bytes({"a": grid()}))),
  ],
)
def test_the_type_is_that_of_the_content_not_of_the_suffix(
  tmp_path, name, content
):
  content(tmp_path / name)
  arrays = read_tensors(tmp_path / name)
  np.testing.assert_array_equal(arrays["a"], grid(), strict=True)
  assert read_global_step(tmp_path / name) is None


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("a.bin", b"", "0 bytes long"),
    ("a.bin", b"some words", "not a safetensors, torch or Flax file"),
    ("a.safetensors", b"some words", "truncated or not a safetensors file"),
    ("a.msgpack", b"some words", "malformed msgpack"),
    ("a.safetensors", b"version https://git-lfs.github.com", "git lfs pull"),
    ("a.ckpt", b"version https://git-lfs.github.com", "git lfs pull"),
  ],
)
def test_files_of_other_types_are_refused_in_one_line(
  tmp_path, name, content, words
):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(WeightsError) as caught:
    read_tensors(path)
  message = str(caught.value)
  assert words in message and message.count(str(path)) == 1
  assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("dtype", torch_files.DTYPES, ids=str)
def test_torch_writes_the_same_files_in_every_dtype(path, is_zip, dtype):
  torch = pytest.importorskip("torch")
  theirs = getattr(torch, dtype.name)
  bits = torch.randint(0, 2, (6, 4, dtype.itemsize), dtype=torch.uint8)
  value = bits.flatten(1).view(theirs)
  state = {"a": value, "b": value.T, "c": value[1:3, ::2], "d": value[0, 0]}
  torch.save(state, path, _use_new_zipfile_serialization=is_zip)
  arrays = read_torch(path)
  numbers = bits.numpy().reshape(6, -1).view(dtype)
  expected = [numbers, numbers.T, numbers[1:3, ::2], numbers[0, 0]]
  for name, array in zip("abcd", expected, strict=True):
    assert arrays[name].dtype == dtype and arrays[name].shape == array.shape
    assert arrays[name].tobytes() == array.tobytes()
