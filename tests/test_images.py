"""Every kind of image file is decoded to the pixels a viewer shows."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data import images
from ldm_jax.data.images import decode_image, read_image, resize, shrink
from ldm_jax.errors import ImageError

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ROWS, COLUMNS = np.mgrid[0:200:4, 0:240:3]
SMOOTH = np.stack([COLUMNS, ROWS, 0 * ROWS + 99], axis=-1).astype(np.uint8)


def save(path, image, **options):
  image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  image.save(path, **options)
  return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, suffix):
  options = {"lossless": True} if suffix == "webp" else {}
  path = save(tmp_path / f"x.{suffix}", PHOTO, **options)
  np.testing.assert_array_equal(read_image(path), PHOTO)


def test_jpeg_is_close(tmp_path):
  got = read_image(save(tmp_path / "x.jpg", SMOOTH, quality=95))
  assert np.abs(got.astype(int) - SMOOTH).max() <= 8


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_has_three_equal_channels(tmp_path, mode):
  grey = Image.fromarray(PHOTO[..., 0]).convert(mode)
  got = read_image(save(tmp_path / "x.png", grey))
  expected = np.asarray(grey.convert("L"))
  np.testing.assert_array_equal(got, np.stack([expected] * 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey_is_scaled_and_not_saturated(tmp_path, suffix):
  gradient = np.linspace(0, 65535, 1024).astype(np.uint16)[None].repeat(2, 0)
  got = read_image(save(tmp_path / f"x.{suffix}", gradient))
  assert len(np.unique(got)) >= 250
  expected = np.round(gradient / 257.0)
  np.testing.assert_array_equal(got, np.stack([expected] * 3, axis=-1))


def test_big_endian_sixteen_bits(tmp_path):
  values = np.array([[0, 257, 257 * 100, 65535]], np.uint16)
  header = b"P5 4 1 65535\n"  # PGM is big-endian by definition
  (tmp_path / "x.pgm").write_bytes(header + values.astype(">u2").tobytes())
  np.testing.assert_array_equal(
    read_image(tmp_path / "x.pgm")[0, :, 0], [0, 1, 100, 255]
  )


def test_palette_colours_and_transparent_index(tmp_path):
  image = Image.new("P", (3, 1))
  image.putpalette([255, 0, 0, 0, 128, 0, 0, 0, 255])
  for column in range(3):
    image.putpixel((column, 0), column)
  opaque = read_image(save(tmp_path / "a.png", image))
  np.testing.assert_array_equal(
    opaque, [[[255, 0, 0], [0, 128, 0], [0, 0, 255]]]
  )
  for suffix in "png", "gif":
    path = save(tmp_path / f"b.{suffix}", image, transparency=1)
    np.testing.assert_array_equal(
      read_image(path), [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_over_white(tmp_path, mode):
  alpha = np.array([[0, 51, 128, 255]], np.uint8)
  colour = np.full((1, 4, 3), 40, np.uint8)
  rgba = Image.fromarray(np.concatenate([colour, alpha[..., None]], -1))
  got = read_image(save(tmp_path / "x.png", rgba.convert(mode)))
  opacity = alpha[..., None] / 255.0
  np.testing.assert_allclose(
    got, opacity * colour + (1 - opacity) * 255, atol=1
  )


def test_one_transparent_colour_of_a_png_without_alpha(tmp_path):
  image = Image.fromarray(np.array([[[9, 9, 9], [10, 0, 0]]], np.uint8))
  got = read_image(save(tmp_path / "x.png", image, transparency=(9, 9, 9)))
  np.testing.assert_array_equal(got, [[[255, 255, 255], [10, 0, 0]]])


def test_cmyk_colours(tmp_path):
  inks = np.zeros((16, 48, 4), np.uint8)
  inks[:, :16] = 0, 255, 255, 0  # magenta and yellow make red
  inks[:, 16:32] = 0, 0, 0, 255  # black
  path = tmp_path / "x.jpg"
  Image.fromarray(inks, mode="CMYK").save(path, quality=95)
  got = read_image(path)[8, [8, 24, 40]].astype(int)
  np.testing.assert_allclose(
    got, [[255, 0, 0], [0, 0, 0], [255, 255, 255]], atol=6
  )


STORED = {  # EXIF: what a camera held that way writes for an upright image
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.transpose(1, 0, 2),
  6: lambda x: np.rot90(x, 1),
  7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
  8: lambda x: np.rot90(x, -1),
  99: lambda x: x,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_images_are_transposed_by_their_exif_orientation(
  tmp_path, orientation, suffix
):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = np.ascontiguousarray(STORED[orientation](PHOTO))
  path = save(tmp_path / f"x.{suffix}", stored, exif=exif)
  np.testing.assert_array_equal(read_image(path), PHOTO)


def test_exif_of_a_jpeg_is_applied_and_damaged_exif_ignored(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  stored = np.ascontiguousarray(np.rot90(SMOOTH, 1))
  got = read_image(save(tmp_path / "x.jpg", stored, quality=95, exif=exif))
  assert np.abs(got.astype(int) - SMOOTH).max() <= 8
  path = save(tmp_path / "y.jpg", SMOOTH, exif=b"Exif\0\0nonsense and more")
  assert read_image(path).shape == SMOOTH.shape


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_animations_are_refused_and_the_first_page_is_read(tmp_path, suffix):
  flat = [Image.new("RGB", (8, 8), (c, c, c)) for c in (0, 120, 240)]
  path = tmp_path / f"x.{suffix}"
  flat[0].save(path, save_all=True, append_images=flat[1:])
  if suffix == "tiff":
    assert read_image(path).max() < 8
    return
  with pytest.raises(ImageError, match="animated image") as refused:
    read_image(path)
  assert refused.value.kind == "animated"
  flat[0].save(path)
  assert read_image(path).max() < 8


def test_more_than_64_million_pixels_are_refused_before_decoding(tmp_path):
  def chunk(kind, data):
    body = kind + data
    return (
      struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    )

  header = struct.pack(">IIBBBBB", 8001, 8000, 8, 2, 0, 0, 0)
  path = tmp_path / "x.png"  # the header alone: there is nothing to decode
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
  )
  with pytest.raises(ImageError, match=r"8001 x 8000.*64 million") as caught:
    read_image(path)
  assert caught.value.kind == "too_large"
  huge = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IDAT", b"")
  )
  with pytest.raises(ImageError) as caught:
    read_image(path)
  assert caught.value.kind == "too_large"


def encoded(suffix):
  file = io.BytesIO()
  Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(
    file, suffix
  )
  return file.getvalue()


@pytest.mark.parametrize("suffix", ["jpeg", "png"])
@pytest.mark.parametrize("part", [0.4, 0.9])
def test_an_incomplete_file_is_truncated(tmp_path, suffix, part):
  path, data = tmp_path / "half", encoded(suffix)
  path.write_bytes(data[: int(len(data) * part)])
  with pytest.raises(ImageError) as caught:
    read_image(path)
  assert caught.value.kind == "truncated"
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("content", "kind"),
  [
    (b"", "not_an_image"),
    (b"<html>\n<body>404</body>", "not_an_image"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
    (None, "unreadable"),
  ],
)
def test_files_that_are_no_images_are_errors_by_kind(tmp_path, content, kind):
  path = tmp_path / "x.jpg"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ImageError) as caught:
    read_image(path)
  assert (caught.value.kind, caught.value.path) == (kind, str(path))
  assert "\n" not in str(caught.value)


def test_a_flipped_byte_in_a_png_is_noticed(tmp_path):
  data = bytearray(encoded("png"))
  data[len(data) // 2] ^= 0xFF
  with pytest.raises(ImageError) as caught:
    decode_image(io.BytesIO(bytes(data)), "record 7")
  assert caught.value.kind in ("corrupt", "truncated")
  assert str(caught.value).startswith("record 7:")


def test_bytes_after_a_jpeg_are_ignored():
  data = encoded("jpeg")
  np.testing.assert_array_equal(
    decode_image(io.BytesIO(data + b"\0" * 1000), "x"),
    decode_image(io.BytesIO(data), "x"),
  )


@pytest.mark.parametrize(
  ("value", "kind"), [(np.nan, "non_finite"), (0.5, "unsupported")]
)
def test_floating_point_pixels_are_refused(tmp_path, value, kind):
  path = save(tmp_path / "x.tiff", np.full((4, 4), value, np.float32))
  with pytest.raises(ImageError) as caught:
    read_image(path)
  assert caught.value.kind == kind


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of TIFF tags
def test_random_damage_raises_nothing_but_image_errors():
  rng = np.random.default_rng(1)
  for suffix in "jpeg", "png", "gif", "tiff", "webp", "bmp", "ppm":
    whole = np.frombuffer(encoded(suffix), np.uint8)
    for _ in range(30):
      data = whole.copy()
      positions = rng.integers(0, min(len(data), 400), 3)
      data[positions] = rng.integers(0, 256, 3)
      try:
        pixels = decode_image(io.BytesIO(data.tobytes()), "x")
      except ImageError:
        continue
      assert pixels.shape[-1] == 3


def test_image_errors_can_be_pickled():
  error = pickle.loads(pickle.dumps(ImageError("a b", "corrupt", "why\nso")))
  assert (error.path, error.kind, error.detail) == ("a b", "corrupt", "why\nso")
  assert str(error) == "a b: corrupt image: why so"


def test_resize_is_antialiased_and_returns_an_image_of_the_size():
  stripes = np.zeros((256, 256, 3), np.uint8)
  stripes[:, ::2] = 255  # finer than 32 pixels can show: they must turn grey
  assert np.abs(resize(stripes, 32, 32).astype(int)[:, 2:-2] - 127).max() <= 2
  assert resize(stripes, 256, 256) is stripes
  flat = np.full((7, 13, 3), 77, np.uint8)
  np.testing.assert_array_equal(resize(flat, 20, 20), np.full((20, 20, 3), 77))


def test_maps_are_resized_without_new_classes():
  segmap = np.array([[0, 9], [3, 200]], np.int32)
  np.testing.assert_array_equal(
    images.resize_map(segmap, 4, 4), segmap.repeat(2, 0).repeat(2, 1)
  )
  np.testing.assert_array_equal(
    images.resize_map(segmap.repeat(3, 0).repeat(3, 1), 2, 2), segmap
  )


def test_arrays_of_other_shapes_are_refused():
  grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
  np.testing.assert_array_equal(images.rgb(grey, "x"), grey.repeat(3, -1))
  with pytest.raises(ImageError, match="float32"):
    images.rgb(np.zeros((3, 4, 3), np.float32), "x")
  with pytest.raises(ImageError, match=r"\[3, 4, 2\]"):
    images.rgb(np.zeros((3, 4, 2), np.uint8), "x")


def test_a_plain_jpeg_is_what_pillow_reads(tmp_path):
  """Both decode by libjpeg-turbo; ours by OpenCV."""
  noise = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
  for name, options in (("a", {}), ("b", {"subsampling": 0, "quality": 95})):
    path = tmp_path / f"{name}.jpg"
    Image.fromarray(noise).save(path, **options)
    with Image.open(path) as image:
      np.testing.assert_array_equal(read_image(path), np.asarray(image))


def test_shrinking_averages_areas():
  noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
  means = noise.reshape(8, 3, 8, 3, 3).mean((1, 3))
  np.testing.assert_allclose(resize(noise, 8, 8), means, atol=0.51)
  flat = np.full((5, 7, 3), 77, np.uint8)
  assert (resize(flat, 3, 3) == 77).all() and (resize(flat, 16, 16) == 77).all()
  assert shrink(flat, 3).shape == (3, 4, 3) and shrink(flat, 9) is flat
