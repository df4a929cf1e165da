"""Flax's msgpack files are read exactly; what flax never writes is refused."""

import ml_dtypes
import msgpack
import numpy as np
import pytest
import torch_files
from flax import serialization

from ldm_jax.errors import WeightsError
from ldm_jax.weights.flax_files import read_flax
from ldm_jax.weights.mmap_files import DTYPES


@pytest.fixture
def path(tmp_path):
  return tmp_path / "flax_model.msgpack"


def grid(dtype="f4"):
  numbers = np.random.default_rng(0).normal(size=(3, 4)) * 10
  return numbers.astype(dtype)


def refusal(path):
  with pytest.raises(WeightsError) as caught:
    read_flax(path)
  message = str(caught.value)
  assert message.startswith(str(path)) and "\n" not in message
  return message


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_is_read_bit_for_bit(path, dtype):
  shapes = [(2, 3), (), (0, 3), (1, 1, 5)]
  rng = np.random.default_rng(0)
  high = 2 if dtype.kind == "b" else 256
  made = lambda s: rng.integers(high, size=(*s, dtype.itemsize), dtype=np.uint8)
  tensors = {str(s): made(s).view(dtype)[..., 0] for s in shapes}
  path.write_bytes(serialization.msgpack_serialize(dict(tensors)))
  arrays = read_flax(path)
  assert arrays.keys() == tensors.keys()
  for name, array in arrays.items():
    assert array.dtype == dtype and array.shape == tensors[name].shape
    assert array.tobytes() == tensors[name].tobytes()


def test_nested_names_are_joined(path):
  tree = {
    "params": {"conv": {"kernel": grid(), "bias": grid()[0]}, "empty": {}},
    "step": np.float32(2.5),
    "count": 3,
    "rate": 0.5,
    "is_trained": True,
  }
  path.write_bytes(serialization.msgpack_serialize(tree))
  arrays = read_flax(path)
  assert arrays["params/conv/kernel"].tobytes() == grid().tobytes()
  np.testing.assert_array_equal(arrays["params/conv/bias"], grid()[0])
  assert arrays["step"] == np.float32(2.5) and arrays["step"].shape == ()
  assert (arrays["count"], arrays["rate"], arrays["is_trained"]) == (3, 0.5, 1)
  assert len(arrays) == 6


@pytest.mark.parametrize("dtype", ["f4", ml_dtypes.bfloat16], ids=str)
def test_chunked_arrays_are_joined(path, monkeypatch, dtype):
  monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 20)
  tree = {"a": {"b": grid(dtype)}, "c": grid(dtype)[:2, 0]}
  path.write_bytes(serialization.msgpack_serialize(tree))
  assert b"__msgpack_chunked_array__" in path.read_bytes()
  arrays = read_flax(path)
  assert arrays["a/b"].dtype == dtype
  np.testing.assert_array_equal(arrays["a/b"], grid(dtype), strict=True)
  np.testing.assert_array_equal(arrays["c"], grid(dtype)[:2, 0], strict=True)


def test_a_file_truncated_anywhere_is_refused(path):
  tree = {"a": {"b": grid()}, "c": grid("f2"), "d": 3}
  whole = serialization.msgpack_serialize(tree)
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    assert refusal(path)
  path.write_bytes(whole + b"\x01")
  assert "malformed msgpack" in refusal(path)


def test_a_file_with_a_damaged_byte_is_read_or_refused(path):
  whole = serialization.msgpack_serialize({"a": {"b": grid()}, "c": grid()})
  rng = np.random.default_rng(0)
  for position in range(len(whole)):
    damaged = bytearray(whole)
    damaged[position] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      arrays = read_flax(path)
    except WeightsError as error:
      assert "\n" not in str(error)
      continue
    assert all(isinstance(array, np.ndarray) for array in arrays.values())


def array(*parts, code=1):
  """An array as flax packs it, of any parts."""
  return msgpack.ExtType(code, msgpack.packb(parts))


def chunks(shape, *chunks):
  number = lambda items: {str(n): item for n, item in enumerate(items)}
  return {
    "__msgpack_chunked_array__": True,
    "shape": number(shape),
    "chunks": number(chunks),
  }


FOUR = array([4], "uint8", b"abcd")


@pytest.mark.parametrize(
  "value, words",
  [
    ([FOUR], "malformed msgpack"),
    (3, "it holds a int"),
    ({"a": None}, "'a' is of type NoneType"),
    ({"a": {"b": "words"}}, "'a/b' is of type str"),
    ({"a": b"bytes"}, "'a' is of type bytes"),
    ({"a": []}, "'a' is of type list"),
    ({"a": [1]}, "malformed msgpack"),
    ({b"a": 1}, "b'a' is not a string"),
    ({3: 1}, "malformed msgpack"),
    ({"a": {"b": 1}, "a/b": 1}, "two entries have the name 'a/b'"),
    ({"a": array([4], "uint8", b"abcde")}, "5 bytes for uint8"),
    ({"a": array([2**62, 4], "uint8", b"abcd")}, "invalid size"),
    ({"a": array([-4], "uint8", b"abcd")}, "invalid size"),
    ({"a": array([2.0, 2], "uint8", b"abcd")}, "invalid size"),
    ({"a": array([0, 2**40, 2**40], "uint8", b"")}, "too large"),
    ({"a": array([1] * 33, "uint8", b"a")}, "malformed msgpack"),
    ({"a": array([1], "object", b"8 bytes.")}, "the dtype 'object'"),
    ({"a": array([1], "O", b"8 bytes.")}, "the dtype 'O'"),
    ({"a": array([1], "S8", b"8 bytes.")}, "the dtype 'S8'"),
    ({"a": array([4], "uint8")}, "not a triple"),
    ({"a": array(4, "uint8", b"abcd")}, "not a triple"),
    ({"a": array([4], 8, b"abcd")}, "not a triple"),
    ({"a": array([4], "uint8", {})}, "not a triple"),
    ({"a": array([4], "uint8", {"a": 1})}, "malformed msgpack"),
    ({"a": array([4], "uint8", FOUR)}, "extension of type 1"),
    ({"a": msgpack.ExtType(1, b"\xc1")}, "malformed msgpack"),
    ({"a": array(1.0, 2.0, code=2)}, "extension of type 2"),
    ({"a": msgpack.ExtType(9, b"")}, "extension of type 9"),
    ({"a": msgpack.Timestamp(1)}, "Timestamp"),
    ({"a": chunks([5], FOUR)}, "chunks of 4 numbers"),
    ({"a": chunks([2, 2], FOUR, FOUR)}, "chunks of 8 numbers"),
    ({"a": chunks([4])}, "malformed chunks"),
    ({"a": chunks(["x"], FOUR)}, "malformed chunks"),
    ({"a": chunks([4], "abcd")}, "malformed chunks"),
    ({"a": chunks([6], FOUR, array([1], "int16", b"ab"))}, "chunks of"),
    ({"a": {"__msgpack_chunked_array__": True}}, "malformed chunks"),
    (
      {"a": {"__msgpack_chunked_array__": 1, "shape": 1, "chunks": 2}},
      "malformed chunks",
    ),
  ],
)
def test_what_flax_never_writes_is_refused(path, value, words):
  path.write_bytes(msgpack.packb(value))
  assert words in refusal(path)


@pytest.mark.parametrize(
  "content, words",
  [
    (b"\x82\xa1a\x01\xa1a\x02", "'a' is twice"),
    (b"\x81\xa1a" * 100 + b"\x01", "over 64 deep"),
    (b"\x81\xa1a" * 10**5 + b"\x01", "malformed msgpack"),
    (b"", "malformed msgpack"),
    (b"\x81\xa1\xff\x01", "malformed msgpack"),
  ],
)
def test_forged_bytes_are_refused(path, content, words):
  path.write_bytes(content)
  assert words in refusal(path)


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xc6", b"\xc9", b"\xdb"])
def test_announced_lengths_are_not_allocated(path, head):
  """Two gigabytes of entries or bytes that do not follow, on many levels."""
  path.write_bytes((head + b"\x7f\xff\xff\xff" + b"\xa1a") * 500)
  with torch_files.little_memory(2**20):
    assert refusal(path)


def test_announced_lengths_within_limits_take_little_memory(path):
  """As many entries on every level as are allowed."""
  content = (b"\xdf\x00\x01\x00\x00" + b"\xa1a") * 200
  path.write_bytes(content + bytes(2**17))
  with torch_files.little_memory(200 * 2**20):
    assert refusal(path)
