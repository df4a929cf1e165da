"""Data sets of Hugging Face are read as `datasets` writes them."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.fingerprint import fingerprint
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.hf_dataset import HfDataset
from ldm_jax.data.sources.tables import GroupCache, features_of
from ldm_jax.errors import ConfigError, DataError, ImageError

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["cat", "dog"]
# What `datasets` 5.0 wrote for a folder of images with classes.
FEATURES = {
  "image": {"_type": "Image"},
  "label": {"names": NAMES, "_type": "ClassLabel"},
}


def png(number):
  file = io.BytesIO()
  Image.new("RGB", (4 + number, 5), (number, 2, 3)).save(file, "PNG")
  return file.getvalue()


def table(numbers, **columns):
  """Rows with images of these numbers."""
  numbers = list(numbers)
  images = [{"bytes": png(n), "path": f"{n}.png"} for n in numbers]
  columns = {"image": images, "label": [n % 2 for n in numbers]} | columns
  made = pa.table({n: v for n, v in columns.items() if v is not None})
  text = json.dumps({"info": {"features": FEATURES}})
  return made.replace_schema_metadata({"huggingface": text})


def write_arrow(made, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  with pa.ipc.new_stream(str(path), made.schema) as writer:
    writer.write_table(made)


def write_parquet(made, path, group=2):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(made, str(path), row_group_size=group)


@pytest.fixture(params=[".parquet", ".arrow"])
def write(request):
  """A function that writes a table under a name without an ending."""
  kind = write_parquet if request.param == ".parquet" else write_arrow

  def write(made, path):
    kind(made, path.parent / (path.name + request.param))

  write.ending = request.param
  return write


def test_rows_of_all_files_in_their_order(tmp_path, write):
  captions = lambda numbers: [f"number {n}" for n in numbers]
  for part in range(2):
    numbers = range(part * 5, part * 5 + 5)
    name = f"data/train-0000{part}-of-00002"
    write(table(numbers, text=captions(numbers)), tmp_path / name)
  write(table([9]), tmp_path / "data" / "test-00000-of-00001")
  write(table([8]), tmp_path / "data" / "cache-train")
  source = HfDataset(str(tmp_path))
  assert len(source) == 10 and source.classes == ("cat", "dog")
  for n in (7, 0, 9, 4):
    item = source[n]
    np.testing.assert_array_equal(
      item["image"], np.full((5, 4 + n, 3), [n, 2, 3])
    )
    assert item["caption"] == f"number {n}" and item["label"] == n % 2
  np.testing.assert_array_equal(source.sizes[:, 1], np.arange(10) + 4)
  assert source.path_of(6).endswith(f"train-00001-of-00002{write.ending}:1")
  assert len(HfDataset(str(tmp_path), split="test")) == 1
  found = fingerprint(source)
  assert found["classes"] == NAMES and found["count"] == 10
  assert found != fingerprint(HfDataset(str(tmp_path), split="test"))


def test_columns_are_chosen(tmp_path, write):
  made = table(
    [3], caption=[["first", "second"]], jpg=[png(7)], kind=[1], label=None
  )
  write(made, tmp_path / "rows")
  source = HfDataset(str(tmp_path), image="jpg", label="kind")
  item = source[0]
  assert item["caption"] == "first" and item["label"] == 1
  assert item["image"].shape == (5, 11, 3) and source.classes == ()
  plain = HfDataset(str(tmp_path), caption=None, label=None)[0]
  assert plain.keys() == {"image"}


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"image": "pixels_"}, "no column 'pixels_' for image; it has image, la"),
    ({"caption": "words"}, "no column 'words' for caption"),
    ({"split": "test"}, "no files of the split 'test'; it has train"),
    ({"path": "absent"}, "there is no file or folder 'absent'"),
    ({"path": "owner/absent"}, "hf download --repo-type dataset owner/absent"),
  ],
)
def test_what_is_not_there_is_one_line(tmp_path, fields, line):
  write_parquet(table([1]), tmp_path / "train.parquet")
  with pytest.raises(ConfigError, match=line):
    len(HfDataset(**({"path": str(tmp_path)} | fields)))


def test_a_folder_without_such_files_or_rows_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"has no file \.parquet or \.arrow"):
    len(HfDataset(str(tmp_path)))
  write_parquet(table([]), tmp_path / "train.parquet")
  with pytest.raises(DataError, match="has no rows"):
    len(HfDataset(str(tmp_path)))


@pytest.mark.parametrize(
  "image, kind",
  [
    ({"bytes": None, "path": "/etc/passwd"}, "unreadable"),
    ({"bytes": None, "path": None}, "unreadable"),
    ({"bytes": b"no image", "path": None}, "not_an_image"),
    ({"bytes": png(1)[:-30], "path": None}, "truncated"),
  ],
)
def test_a_bad_image_is_an_image_error_and_no_path_is_opened(
  tmp_path, image, kind
):
  write_parquet(table([1, 1], image=[image, image]), tmp_path / "a.parquet")
  source = HfDataset(str(tmp_path))
  with pytest.raises(ImageError) as refused:
    _ = source[1]
  assert refused.value.kind == kind and "a.parquet:1" in str(refused.value)
  assert source.sizes.shape == (2, 2)


def test_pickles_are_refused(tmp_path, write):
  class Unpickled:
    def __reduce__(self):
      return exec, ("raise AssertionError('unpickled')",)

  data = pickle.dumps(Unpickled())
  field = pa.field("label", pa.int64()).with_metadata(
    {
      "ARROW:extension:name": "arrow.py_extension_type",
      "ARROW:extension:metadata": data,
    }
  )
  made = table([1])
  schema = pa.schema([made.schema.field("image"), field], made.schema.metadata)
  write(made.cast(schema), tmp_path / "rows")
  with pytest.raises(DataError, match="holds pickled Python"):
    len(HfDataset(str(tmp_path)))


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_one_line(tmp_path, write):
  write(table(range(6)), tmp_path / "rows")
  (path,) = tmp_path.iterdir()
  content, rng = path.read_bytes(), np.random.default_rng(0)
  for _ in range(40):
    data = bytearray(content[: rng.integers(1, len(content) + 1)])
    for place in rng.integers(0, len(data), 3):
      data[place] = rng.integers(0, 256)
    path.write_bytes(data)
    try:
      source = HfDataset(str(tmp_path))
      for i in range(len(source)):
        _ = source[i]
      _ = source.classes
    except (ConfigError, DataError, ImageError) as error:
      assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["[]", '{"info": 1}', "{", '{"info": {}}'])
def test_malformed_features_are_one_line(text):
  schema = table([1]).schema.with_metadata({"huggingface": text})
  with pytest.raises(DataError, match="features are malformed"):
    features_of(schema)


def test_row_groups_are_kept_up_to_a_size():
  made, reads = pa.table({"a": np.zeros(1000)}), []
  cache = GroupCache(2.5 * made.nbytes)
  for key in (1, 2, 1, 3, 1, 2):
    cache.get(key, lambda key=key: reads.append(key) or made)
  assert reads == [1, 2, 3, 2]


def test_the_metadata_of_a_folder_may_be_parquet(tmp_path):
  for name in ("a", "b"):
    (tmp_path / f"{name}.png").write_bytes(png(1))
  rows = {"file_name": ["b.png", "a.png"], "text": ["two", None]}
  write_parquet(
    pa.table(rows | {"score": [2.0, 5.5]}), tmp_path / "metadata.parquet"
  )
  source = Folder(str(tmp_path))
  assert [source[i]["caption"] for i in range(2)] == ["", "two"]
  assert [source[i]["score"] for i in range(2)] == [5.5, 2.0]
