"""Formats, limits and orientations of images, the same for every reader."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.annotations import read_map, read_mask
from ldm_jax.data.images import (
  decode_image,
  header_size,
  image_size,
  read_image,
)
from ldm_jax.data.open_images import FORMATS, read_png_text
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.shards import Shards
from ldm_jax.data.sources.tfds_source import TfdsSource
from ldm_jax.errors import ConfigError, DataError, ImageError
from ldm_jax.pretrained.inspect import inspect
from ldm_jax.sampling.inputs.condition_inputs import read_segmap
from ldm_jax.sampling.metadata import read_metadata

ORIENTED = ("JPEG", "PNG", "WEBP", "TIFF")  # the others hold no EXIF
CORNERS = np.zeros((32, 48), np.uint8)  # dark, grey, lighter, white
CORNERS[:16, 24:], CORNERS[16:, :24], CORNERS[16:, 24:] = 80, 160, 255

# What EXIF 2.3 says of each value: where row 0 and column 0 are shown.
TURNED = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.T,
  6: lambda a: np.rot90(a, -1),
  7: lambda a: a[::-1, ::-1].T,
  8: lambda a: np.rot90(a),
}


def encoded(form, turn=1, **options):
  exif = Image.Exif()
  exif[0x0112] = turn
  file = io.BytesIO()
  if form in ORIENTED:
    options["exif"] = exif
  options |= {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
  image = Image.fromarray(CORNERS)
  image.convert("RGB" if form == "WEBP" else "L").save(file, form, **options)
  return file.getvalue()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("form", FORMATS)
def test_size_and_pixels_are_turned_once(tmp_path, form, turn):
  data = encoded(form, turn)
  wanted = TURNED[turn if form in ORIENTED else 1](CORNERS)
  pixels = decode_image(io.BytesIO(data), "x")
  np.testing.assert_allclose(pixels[..., 0], wanted, atol=6)
  assert image_size(io.BytesIO(data)) == wanted.shape
  path = tmp_path / f"x.{form.lower()}"
  path.write_bytes(data)
  assert header_size(path) == read_image(path).shape[:2] == wanted.shape
  assert Folder(str(tmp_path)).sizes.tolist() == [list(wanted.shape)]
  if form not in ("JPEG", "WEBP", "GIF"):  # exact values of one channel
    np.testing.assert_array_equal(read_map(path, wanted.shape), wanted)


def test_a_tiff_is_turned_once_with_compression_and_tiles(tmp_path):
  for options in ({"compression": "tiff_lzw"}, {"compression": "jpeg"}):
    data = encoded("TIFF", 6, **options)
    wanted = TURNED[6](CORNERS)
    assert image_size(io.BytesIO(data)) == wanted.shape
    found = decode_image(io.BytesIO(data), "x")[..., 0]
    np.testing.assert_allclose(found, wanted, atol=6)


def test_an_orientation_after_the_pixels_of_a_png_counts():
  data = encoded("PNG", 6)
  start = data.index(b"eXIf") - 4
  (length,) = struct.unpack(">I", data[start : start + 4])
  chunk = data[start : start + 12 + length]
  end = data.index(b"IEND") - 4
  moved = data[:start] + data[start + len(chunk) : end] + chunk + data[end:]
  assert image_size(io.BytesIO(moved)) == (48, 32)
  assert decode_image(io.BytesIO(moved), "x").shape == (48, 32, 3)


def test_the_first_image_of_an_mpo_is_read():
  """Telephones write them, with a preview or a gain map."""
  file = io.BytesIO()
  second = Image.new("L", (9, 9))
  Image.fromarray(CORNERS).save(
    file, "MPO", save_all=True, append_images=[second], quality=95
  )
  found = decode_image(io.BytesIO(file.getvalue()), "x")[..., 0]
  np.testing.assert_allclose(found, CORNERS, atol=6)


def foreign(form):
  """A valid image of a format that is not read."""
  file = io.BytesIO()
  Image.fromarray(CORNERS).save(file, form)
  return file.getvalue()


def bomb():
  """A PNG's header of 8001 x 8000 pixels, without any."""
  header = b"IHDR" + struct.pack(">IIBBBBB", 8001, 8000, 8, 0, 0, 0, 0)
  data = [b"IDAT", b"IEND"]
  chunk = lambda body: (
    struct.pack(">I", len(body) - 4)
    + body
    + struct.pack(">I", zlib.crc32(body))
  )
  return b"\x89PNG\r\n\x1a\n" + chunk(header) + b"".join(map(chunk, data))


def tfds_map(path):
  source = TfdsSource("x", segmap="map")
  vars(source)["_data"] = [{"image": encoded("PNG"), "map": path.read_bytes()}]
  vars(source)["_features"] = {}
  return source[0]


READERS = {
  "image": (read_image, ImageError),
  "size": (image_size, ImageError),
  "map": (read_map, DataError),
  "mask": (read_mask, DataError),
  "tfds map": (tfds_map, ImageError),
  "segmap of a request": (lambda p: read_segmap(str(p), 8, 8), ConfigError),
  "settings": (read_metadata, ConfigError),
}


@pytest.mark.parametrize("reader, error", READERS.values(), ids=READERS)
def test_every_reader_opens_the_same_formats_up_to_the_same_size(
  tmp_path, reader, error
):
  path = tmp_path / "x.png"
  for form in ("EPS", "ICO", "PCX", "TGA", "SGI"):
    path.write_bytes(foreign(form))
    with pytest.raises(error, match=r"no reader of .*PNG.* recognizes it"):
      reader(path)
  path.write_bytes(bomb())
  with pytest.raises(error, match="8001 x 8000 pixels; at most 64 million"):
    reader(path)
  path.unlink()
  os.mkfifo(path)
  if reader is not tfds_map:
    with pytest.raises(error, match="a regular file is needed"):
      reader(path)


def test_no_other_module_opens_images():
  """Each call of Pillow's open names its formats."""
  import ast
  import pathlib

  import ldm_jax

  found = []
  for path in pathlib.Path(ldm_jax.__file__).parent.rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
        assert {k.arg for k in node.keywords} == {"formats"}, path
        found.append(path.stem)
  assert sorted(found) == ["degradation", "open_images"]


def test_values_that_are_no_classes_are_refused(tmp_path):
  for array in (np.float32([[0.5]]), np.int32([[-1]]), np.float32([[np.nan]])):
    Image.fromarray(array).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"numbers from 0|NaN or infinity"):
      read_map(tmp_path / "x.tiff")


@pytest.mark.parametrize("text", ["5", "null", "[]", "NaN", '"x"', "[" * 999])
def test_settings_of_a_png_must_be_an_object(tmp_path, text):
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  info.add_text("ldm_jax", text)
  path = tmp_path / "x.png"
  Image.fromarray(CORNERS).save(path, pnginfo=info)
  assert read_png_text(path, "ldm_jax") == ((48, 32), text)
  for reader in (read_metadata, inspect):
    with pytest.raises(ConfigError, match="JSON") as refused:
      reader(str(path))
    assert "\n" not in str(refused.value)


def test_sizes_of_shards_are_those_of_their_images(tmp_path):
  import tarfile

  with tarfile.open(tmp_path / "x.tar", "w") as tar:
    for turn in range(1, 9):
      data = encoded("TIFF", turn)
      member = tarfile.TarInfo(f"{turn}.tiff")
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  source = Shards(str(tmp_path))
  for i, size in enumerate(source.sizes.tolist()):
    assert list(source[i]["image"].shape[:2]) == size
