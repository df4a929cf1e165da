"""Packed examples are those of the folder they were packed from."""

import io
import json
import tarfile

import numpy as np
import pytest
from etils.epath import testing
from PIL import Image

from ldm_jax.cli import prepare
from ldm_jax.cli.exit_codes import DATA, USAGE, CommandError
from ldm_jax.data import batching
from ldm_jax.data.sources import packed_examples, shards
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.mix import Mix
from ldm_jax.data.sources.shards import Shards
from ldm_jax.data.sources.write_records import write_record
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import DataError, ImageError

NAMES = [f"{kind}/{i}" for kind in ("ants", "bees") for i in range(5)]
CONFIG = """
from ldm_jax.config import Data, Experiment
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.data.sources.folder import Folder
from ldm_jax.training.denoiser import DenoiserTask


def get_config():
  source = Folder({path!r})
  data = Data(source, source, Augment(8, scale=(0.5, 1.0)))
  return Experiment(DenoiserTask(), data, steps=1)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Noisy images of two classes with every kind of annotation."""
  root, rng = tmp_path_factory.mktemp("insects"), np.random.default_rng(0)
  plane = lambda *shape: rng.integers(0, 256, shape, np.uint8)
  for i, name in enumerate(NAMES):
    path = root / name
    path.parent.mkdir(exist_ok=True)
    shape = (20 + i, 31 - i)
    save = lambda ending, array, path=path: Image.fromarray(array).save(
      f"{path}{ending}"
    )
    save(".png", plane(*shape, 3))
    save(".map.png", plane(*shape))
    save(".mask.png", plane(*shape))
    depth = rng.integers(0, 65536, shape, np.uint16)
    depth.flat[:2] = 0, 65535
    save(".depth.png", depth)
    path.with_suffix(".txt").write_text(f"insect {i}, \n grün")
    boxes = [{"class": i, "box": [0.1, 0.25, 0.5, 0.75]}] * (i % 3)
    path.with_suffix(".boxes.json").write_text(json.dumps(boxes))
  return root


def pack_tars(root, out, endings=None):
  """WebDataset: files of one name next to each other, labels as text."""
  out.mkdir()
  for part in range(2):
    with tarfile.open(out / f"{part}.tar", "w") as tar:
      for name in NAMES[part * 5 : part * 5 + 5]:
        (out / "cls").write_text(str(name.startswith("bees") * 1))
        tar.add(out / "cls", f"{name}.cls")
        for path in sorted((root / name).parent.glob(f"{name[-1]}.*")):
          tar.add(path, str(path.relative_to(root)))
      tar.add(root, "folder", recursive=False)
  (out / "cls").unlink()
  return Shards(str(out))


def config(root, tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG.format(path=str(root)))
  return f"--config={path}"


def same(ours, theirs):
  assert len(ours) == len(theirs) > 0
  for i in range(len(theirs)):
    one, other = ours[i], theirs[i]
    assert one.keys() == other.keys()
    for key, value in other.items():
      np.testing.assert_array_equal(one[key], value, err_msg=f"{i} {key}")
      assert np.asarray(one[key]).dtype == np.asarray(value).dtype


def test_tars_hold_what_the_folder_holds(root, tmp_path):
  tars = pack_tars(root, tmp_path / "tars")
  same(tars, Folder(str(root)))
  same(Shards(str(tmp_path / "tars" / "*.tar")), Folder(str(root)))
  first = Shards(str(tmp_path / "tars" / "0.tar"))
  assert len(first) == 5 and first[4]["caption"] == "insect 4, grün"
  with pytest.raises(IndexError, match="5 examples, not 5"):
    first[5]


def test_records_hold_what_the_folder_holds(root, tmp_path, monkeypatch):
  monkeypatch.setattr("ldm_jax.training.preparation.images.EACH", 4)
  out = tmp_path / "records"
  flags = [config(root, tmp_path), f"--out={out}", "--format=png", "--size=99"]
  assert prepare.main(flags) == 0
  same(Shards(str(out)), Folder(str(root)))
  files = sorted(out.glob("*.array_record"))
  assert len(files) == 3  # of at most four examples
  # Stopped before the end, it is resumed; existing files are kept.
  times = [file.stat().st_mtime_ns for file in files]
  files[1].unlink()
  manifest = json.loads((out / "manifest.json").read_text())
  (out / "manifest.json").write_text(
    json.dumps(manifest | {"is_complete": False})
  )
  with pytest.raises(ValueError, match="is not complete; run the command"):
    len(Shards(str(out)))
  assert prepare.main(flags) == 0
  same(Shards(str(out)), Folder(str(root)))
  assert files[0].stat().st_mtime_ns == times[0]
  with pytest.raises(CommandError, match="prepared with another size"):
    prepare.main([*flags[:-1], "--size=50"])
  with pytest.raises(ValueError, match="holds no latents"):
    len(CachedLatents(str(out)))


def test_images_are_packed_at_the_size_that_crops_need(root, tmp_path):
  """Shorter side 16, what a crop of 8 from half of it needs; JPEG nearly."""
  out = tmp_path / "small"
  assert prepare.main([config(root, tmp_path), f"--out={out}"]) == 0
  small, whole = Shards(str(out)), Folder(str(root))
  for i in range(len(whole)):
    one, other = small[i], whole[i]
    height, width = other["image"].shape[:2]
    assert min(one["image"].shape[:2]) == 16
    assert one["image"].shape[0] == round(height * 16 / min(height, width))
    for key in ("segmap", "mask", "depth"):
      assert one[key].shape == one["image"].shape[:2]
    assert set(one["segmap"].ravel()) <= set(other["segmap"].ravel())
    mean = lambda item: item["image"].mean((0, 1))
    np.testing.assert_allclose(mean(one), mean(other), atol=4)


def test_batches_are_the_same_from_either(root, tmp_path):
  def made(source):
    stream = batching.batches(
      source, batch=4, seed=3, augment=Augment(8), threads=2
    )
    return [next(stream) for _ in range(4)]

  tars = pack_tars(root, tmp_path / "tars")
  for one, other in zip(made(tars), made(Folder(str(root))), strict=True):
    assert one.keys() == other.keys() >= {"image", "segmap", "boxes", "label"}
    for key in other:
      np.testing.assert_array_equal(one[key], other[key])


DAMAGED = b"\x89PNG nothing"


@pytest.mark.parametrize(
  ("files", "error", "message"),
  [
    ({"txt": b"a"}, ValueError, "x:0 has no image among txt"),
    ({"png": DAMAGED}, ImageError, "x:0.png: not_an_image"),
    ({"cls": b"seven"}, ValueError, "cls a whole number"),
    ({"txt": b"\xff"}, ValueError, "txt must be UTF-8"),
    ({"json": b"{"}, ValueError, "JSON object"),
    ({"json": b"[1]"}, ValueError, "JSON object"),
    (
      {"map.png": DAMAGED},
      ValueError,
      "x:0.map.png: mislabelled image: is not an image",
    ),
    (
      {"boxes.json": b"{}x"},
      ValueError,
      "x:0.boxes.json: mislabelled image: must hold a list",
    ),
  ],
)
def test_a_bad_example_is_named(root, files, error, message):
  good = {"png": (root / f"{NAMES[0]}.png").read_bytes()}
  if "txt" not in files or len(files["txt"]) > 1 or files["txt"] == b"\xff":
    files = good | files
  with pytest.raises(error, match=message):
    shards.example(files, "x:0")


def test_json_replaces_the_text_files(root):
  png = (root / f"{NAMES[0]}.png").read_bytes()
  entry = {"text": "a  b", "label": 3, "score": 5.5, "url": "x"}
  item = shards.example({"png": png, "json": json.dumps(entry).encode()}, "x")
  assert (item["caption"], item["label"], item["score"]) == ("a b", 3, 5.5)
  assert item.keys() == {"image", "caption", "label", "score"}


def test_files_that_are_no_shards_are_refused(root, tmp_path):
  for path in (tmp_path / "none", root, tmp_path / "*.tar"):
    with pytest.raises(ValueError, match="has no shards"):
      len(Shards(str(path)))
  (tmp_path / "bad.tar").write_bytes(b"junk" * 500)
  with pytest.raises(ValueError, match="is not an uncompressed tar"):
    len(Shards(str(tmp_path / "bad.tar")))
  (tmp_path / "bad.array_record").write_bytes(b"junk")
  with pytest.raises(ValueError, match="cannot be read"):
    len(Shards(str(tmp_path / "bad.array_record")))
  with pytest.raises(ValueError, match="both kinds of shards"):
    len(Shards(str(tmp_path)))
  write_record(str(tmp_path / "odd.array_record"), [{"jpg": b"x" * 70_000}])
  with pytest.raises(ImageError, match=r"odd\.array_record:0\.jpg"):
    Shards(str(tmp_path / "odd.array_record"))[0]


def test_examples_that_cannot_be_packed_are_an_error(root, tmp_path):
  flags = [config(root, tmp_path), f"--out={tmp_path / 'out'}"]
  with pytest.raises(CommandError, match="size must be 1 or more") as stop:
    prepare.main([*flags, "--size=0"])
  assert stop.value.code == USAGE
  with pytest.raises(CommandError, match="holds other files"):
    prepare.main([flags[0], f"--out={root}"])
  broken = tmp_path / "broken"
  broken.mkdir()
  Image.new("RGB", (9, 9)).save(broken / "0.png")
  (broken / "1.png").write_bytes(DAMAGED)
  more = tmp_path / "more"
  more.mkdir()
  with pytest.raises(CommandError, match=r"1\.png: not_an_image") as stop:
    prepare.main([config(broken, more), f"--out={more / 'out'}"])
  assert stop.value.code == DATA
  assert not list((more / "out").glob("*.array_record"))


def test_a_mix_holds_every_source_in_proportion_to_its_weight(root, tmp_path):
  ants, bees = (Folder(str(root / name)) for name in ("ants", "bees"))
  whole = Folder(str(root))
  mix = Mix((ants, whole), (3.0, 1.0))
  # The ten of the whole are seen once, the five ants six times.
  assert len(mix) == 40
  captions = [mix[i]["caption"] for i in range(40)]
  assert captions[:30] == [f"insect {i}, grün" for i in range(5)] * 6
  assert captions[30:] == [f"insect {i}, grün" for i in range(10)]
  assert len(Mix((ants, bees), (1.0, 1.0))) == 10
  with pytest.raises(IndexError, match="40 examples, not 40"):
    mix[40]
  for weights in ((1.0,), (1.0, 0.0), (1.0, float("inf"))):
    with pytest.raises(ValueError, match="weights"):
      Mix((ants, bees), weights)
  stream = batching.batches(
    Mix((ants, bees), (9.0, 1.0)), batch=50, seed=0, augment=Augment(4)
  )
  assert "image" in next(stream)


def test_tars_in_a_storage_bucket_read_as_in_a_folder(root, tmp_path):
  """The bucket is a folder that epath reads in its place."""
  bucket = tmp_path / "bucket"
  pack_tars(root, bucket)
  here = lambda path: str(path).replace("gs://bucket", str(bucket))
  there = lambda path: str(path).replace(str(bucket), "gs://bucket")
  moved = lambda original, path, *more: original(here(path), *more)
  with testing.mock_epath(
    open=moved,
    exists=moved,
    isdir=moved,
    listdir=moved,
    glob=lambda original, path: list(map(there, original(here(path)))),
  ):
    manifest = bucket / "manifest.json"
    for path in ("gs://bucket", "gs://bucket/*.tar"):
      found, wanted = Shards(path), Shards(str(bucket))
      assert len(found) == len(wanted) == len(NAMES)
      for i in range(len(found)):
        np.testing.assert_array_equal(found[i]["image"], wanted[i]["image"])
        assert found[i]["caption"] == wanted[i]["caption"]
    manifest.write_text(json.dumps({"is_complete": False}))
    with pytest.raises(ValueError, match="is not complete"):
      len(Shards("gs://bucket"))


def test_the_output_of_img2dataset_is_read(tmp_path):
  """Tars, a Parquet table and statistics of each; NaN and null in the json."""
  rows = [("000000000", "a fox"), ("000000001", None), ("000000003", "a cat")]
  with tarfile.open(tmp_path / "00000.tar", "w") as tar:
    for number, (key, caption) in enumerate(rows):
      file = io.BytesIO()
      Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "JPEG", quality=100)
      entry = {
        "caption": caption,
        "url": "https://example.org/a.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 8,
        "height": 8,
        "original_width": 9,
        "original_height": 9,
        "punsafe": float("nan"),
        "exif": '{"Image Tag 0x0": "x"}',
        "sha256": "0" * 64,
      }
      members = {"jpg": file.getvalue(), "json": json.dumps(entry).encode()}
      if caption is not None:
        members["txt"] = caption.encode()
      for ending, data in members.items():
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
  (tmp_path / "00000.parquet").write_bytes(b"PAR1")
  (tmp_path / "00000_stats.json").write_text('{"count": 4, "successes": 3}')
  source = Shards(str(tmp_path))
  assert [source[i]["caption"] for i in range(3)] == ["a fox", "", "a cat"]
  assert source[0].keys() == {"image", "caption"}


@pytest.mark.parametrize("score", ["NaN", "1e39", "null"])
def test_a_score_that_is_no_finite_number_is_refused(score):
  files = {"png": b"", "json": f'{{"score": {score}}}'.encode()}
  with pytest.raises(DataError, match="score is"):
    packed_examples._metadata(files, "x")
