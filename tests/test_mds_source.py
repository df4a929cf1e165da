"""MDS shards of MosaicML's streaming."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.fingerprint import fingerprint
from ldm_jax.data.sources.mds_source import MdsSource
from ldm_jax.errors import ConfigError, DataError, ImageError

COLUMNS = {"image": "png", "text": "str", "label": "int", "extra": "pkl"}


def png(number):
  file = io.BytesIO()
  Image.new("RGB", (4, 5), (number, 2, 3)).save(file, "PNG")
  return file.getvalue()


def row(number):
  label = np.int64(number % 2).tobytes()
  text = f"number  {number}".encode()
  return {"image": png(number), "text": text, "label": label, "extra": b"\x80."}


def write(folder, rows, columns=COLUMNS, parts=2, **changes):
  """Shards as `MDSWriter` writes them: offsets, the config, the samples."""
  shards, size = [], -(-len(rows) // parts)
  sizes = {name: 8 if kind == "int" else None for name, kind in columns.items()}
  for part in range(parts):
    samples = []
    for each in rows[part * size : (part + 1) * size]:
      varying = [each[name] for name in columns if not sizes[name]]
      heads = np.uint32([len(data) for data in varying]).tobytes()
      samples.append(heads + b"".join(each[name] for name in columns))
    begin = 4 * (2 + len(samples)) + 6
    ends = np.cumsum([begin, *map(len, samples)])
    head = np.uint32([len(samples), *ends]).tobytes() + b"config"
    name = f"shard.{part:05d}.mds"
    (folder / name).write_bytes(head + b"".join(samples))
    shards.append(
      {
        "format": "mds",
        "version": 2,
        "samples": len(samples),
        "column_names": list(columns),
        "column_encodings": list(columns.values()),
        "column_sizes": list(sizes.values()),
        "compression": None,
        "raw_data": {"basename": name, "bytes": 1, "hashes": {}},
        "zip_data": None,
      }
      | changes
    )
  index = {"version": 2, "shards": shards}
  (folder / "index.json").write_text(json.dumps(index))
  return MdsSource(str(folder))


def test_samples_are_read_at_random_and_pickles_are_not(tmp_path):
  source = write(tmp_path, [row(n) for n in range(7)])
  assert len(source) == 7
  for number in (6, 0, 4):
    item = source[number]
    assert item.keys() == {"image", "caption", "label"}
    expected = np.full((5, 4, 3), [number, 2, 3])
    np.testing.assert_array_equal(item["image"], expected)
    assert item["caption"] == f"number {number}"
    assert item["label"] == number % 2 and item["label"].dtype == np.int32
  assert source.path_of(5).endswith("shard.00001.mds:1")
  assert fingerprint(source)["count"] == 7
  with pytest.raises(IndexError):
    _ = source[7]


def test_columns_are_chosen_by_name(tmp_path):
  columns = {"a": "bytes", "words": "str", "kind": "uint8", "image": "pil"}
  mode = np.uint32([3, 2, 3]).tobytes() + b"RGB" + bytes(range(18))
  rows = [{"a": png(9), "words": b"x", "kind": b"\x07", "image": mode}]
  write(tmp_path, rows, columns, parts=1)
  item = MdsSource(str(tmp_path))[0]
  assert item.keys() == {"image"} and item["image"].shape == (2, 3, 3)
  np.testing.assert_array_equal(item["image"].ravel(), np.arange(18))
  item = MdsSource(str(tmp_path), "a", "words", "kind")[0]
  assert item["image"][0, 0, 0] == 9 and item["label"] == 7


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"label": "extra"}, r"label needs .*'extra'; there are image \(png\)"),
    ({"image": "none"}, "image needs a column of the encoding jpeg, png"),
    ({"caption": "label"}, "caption needs a column of the encoding str"),
    ({"path": "absent"}, r"absent has no index\.json"),
  ],
)
def test_other_columns_are_refused(tmp_path, fields, line):
  write(tmp_path, [row(1)], parts=1)
  with pytest.raises(ConfigError, match=line):
    _ = MdsSource(**({"path": str(tmp_path)} | fields))[0]


@pytest.mark.parametrize(
  "changes, kind, line",
  [
    ({"format": "json"}, DataError, "not of format mds, version 2"),
    ({"samples": "3"}, DataError, "not of format mds, version 2"),
    ({"column_sizes": [1]}, DataError, "not of format mds, version 2"),
    ({"raw_data": {"basename": "/etc/passwd"}}, DataError, "malformed shard"),
    ({"raw_data": {"basename": "../a"}}, DataError, "malformed shard"),
    (
      {"raw_data": {"basename": "a.mds"}, "zip_data": {"basename": "a.zstd"}},
      ConfigError,
      r"a\.mds is compressed",
    ),
  ],
)
def test_other_indices_are_one_line(tmp_path, changes, kind, line):
  with pytest.raises(kind, match=line) as refused:
    len(write(tmp_path, [row(1)], parts=1, **changes))
  assert "\n" not in str(refused.value)


def test_damaged_shards_are_one_line(tmp_path):
  write(tmp_path, [row(n) for n in range(3)], parts=1)
  path, rng = tmp_path / "shard.00000.mds", np.random.default_rng(0)
  content = path.read_bytes()
  for _ in range(100):
    data = bytearray(content[: rng.integers(1, len(content) + 1)])
    for place in rng.integers(0, len(data), 2):
      data[place] = rng.integers(0, 256)
    path.write_bytes(data)
    try:
      source = MdsSource(str(tmp_path))
      _ = [source[i] for i in range(3)]
    except (DataError, ImageError) as error:
      assert "\n" not in str(error)
