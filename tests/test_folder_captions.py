"""Captions of folders and tars: each is read, refused or counted."""

import io
import json
import tarfile

import pytest
from PIL import Image

from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.shards import Shards
from ldm_jax.errors import DataError


def folder(root, files):
  """Images where the content is None, else texts or bytes."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
      Image.new("RGB", (4, 4)).save(path)
    else:
      path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
      )
  return Folder(str(root))


def captions(source):
  return [source[i].get("caption") for i in range(len(source))]


def line(**fields):
  return json.dumps(fields)


READ = {
  "capital ending": ({"a.png": None, "a.TXT": "red"}, ["red"]),
  "kohya's ending": ({"a.png": None, "a.caption": "red"}, ["red"]),
  "text before caption": (
    {"a.png": None, "a.caption": "blue", "a.txt": "red"},
    ["red"],
  ),
  "dots": (
    {"a.v1.png": None, "a.v1.txt": "red", "a.v2.png": None, "a.v2.txt": "x"},
    ["red", "x"],
  ),
  "backslashes": (
    {
      "t/a.png": None,
      "metadata.jsonl": line(file_name="t\\a.png", text="red"),
    },
    ["red"],
  ),
  "metadata in a subfolder": (
    {"t/a.png": None, "t/metadata.jsonl": line(file_name="a.png", text="red")},
    ["red"],
  ),
  "csv": (
    {"a.png": None, "metadata.csv": 'file_name,text\na.png,"red, \nbig"\n'},
    ["red, big"],
  ),
  "the first of a list": (
    {
      "a.png": None,
      "metadata.jsonl": line(file_name="a.png", text=["red", "blue"]),
    },
    ["red"],
  ),
  "a line separator within a text": (
    {
      "a.png": None,
      "metadata.jsonl": '{"file_name": "a.png", "text": "red\u2028cat"}',
    },
    ["red cat"],
  ),
}


@pytest.mark.parametrize("files, wanted", READ.values(), ids=READ)
def test_every_caption_is_read(tmp_path, files, wanted):
  assert captions(folder(tmp_path, files)) == wanted


REFUSED = {
  "wrong name": (
    {
      "a.png": None,
      "metadata.jsonl": line(file_name="a.jpg", text="red"),
    },
    r"metadata.jsonl:1: 'a.jpg' is not an image of this folder",
  ),
  "wrong folder": (
    {
      "t/a.png": None,
      "t/metadata.jsonl": line(file_name="t/a.png", text="red"),
    },
    "names are relative to metadata.jsonl",
  ),
  "outside": (
    {"a.png": None, "metadata.csv": "file_name,text\n../a.png,red\n"},
    "not an image of this folder",
  ),
  "twice": (
    {
      "a.png": None,
      "metadata.jsonl": line(file_name="a.png", text="red")
      + "\n"
      + line(file_name="./a.png", text="blue"),
    },
    "metadata.jsonl:2: 'a.png' is listed twice",
  ),
  "parquet": (
    {"a.png": None, "metadata.parquet": b"PAR1"},
    r"metadata.parquet cannot be read: ",
  ),
  "a number": (
    {"a.png": None, "metadata.jsonl": line(file_name="a.png", text=3)},
    "the caption is '3'; expected a text",
  ),
  "fields of csv": (
    {"a.png": None, "metadata.csv": "file_name,text\na.png,red,3\n"},
    "another number of fields",
  ),
  "no text": (
    {"a.png": None, "metadata.csv": "file_name,prompt\na.png,red\n"},
    "expected file_name and text",
  ),
  "score": (
    {
      "a.png": None,
      "metadata.jsonl": line(file_name="a.png", text="", score="high"),
    },
    "score='high'",
  ),
  "a list": (
    {"a.png": None, "metadata.jsonl": "[1]"},
    "metadata.jsonl:1 holds a list; expected a JSON object",
  ),
}


@pytest.mark.parametrize("files, message", REFUSED.values(), ids=REFUSED)
def test_what_would_lose_a_caption_is_refused(tmp_path, files, message):
  source = folder(tmp_path, files)
  with pytest.raises(DataError, match=message) as refused:
    _ = source[0]
  assert "\n" not in str(refused.value)


def test_images_without_a_caption_are_counted(tmp_path, caplog):
  lines = [line(file_name="c.png", text=None), line(file_name="d.png", text="")]
  files = {f"{name}.png": None for name in "abcde"}
  files |= {"a.txt": "red", "b.txt": "", "metadata.jsonl": "\n".join(lines)}
  source = folder(tmp_path, files | {"f.txt": "of no image"})
  assert captions(source) == ["red", "", "", "", ""]
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == 2
  assert (
    '4 of 5 images have no caption and get ""; the first is b.png'
    in (messages[0])
  )
  assert "1 text files are of no image; the first is f.txt" in messages[1]


def test_a_folder_without_any_caption_has_none_and_no_warning(tmp_path, caplog):
  assert captions(folder(tmp_path, {"a.png": None})) == [None]
  assert not caplog.records


def tar(path, files):
  file = io.BytesIO()
  Image.new("RGB", (4, 4)).save(file, "PNG")
  with tarfile.open(path, "w") as opened:
    for name, content in files.items():
      data = file.getvalue() if content is None else content.encode()
      member = tarfile.TarInfo(name)
      member.size = len(data)
      opened.addfile(member, io.BytesIO(data))
  return Shards(str(path))


def test_names_of_a_tar_may_hold_dots(tmp_path):
  files = {"a.v1.png": None, "a.v1.txt": "red", "a.v2.png": None}
  source = tar(tmp_path / "x.tar", files | {"a.v2.map.txt": "no image"})
  with pytest.raises(DataError, match="has no image among"):
    _ = source[0]
  source = tar(tmp_path / "y.tar", files | {"a.v2.txt": "blue"})
  assert captions(source) == ["red", "blue"]


def test_files_of_a_tar_that_are_not_read_are_counted(tmp_path, caplog):
  source = tar(tmp_path / "x.tar", {"a.png": None, "a.en.txt": "red"})
  assert captions(source) == [None]
  assert "files that are not read: en.txt (1)" in caplog.text


@pytest.mark.parametrize(
  "entry, wanted",
  [
    ({"text": None}, ""),
    ({"caption": ["red", "blue"]}, "red"),
    ({"text": 3}, "expected a text"),
    ({"label": "3"}, "label is '3'"),
    ({"label": 10**20}, "label is 1"),
    ({"score": [1]}, "score is"),
  ],
)
def test_values_of_a_tars_json(tmp_path, entry, wanted):
  source = tar(tmp_path / "x.tar", {"a.png": None, "a.json": json.dumps(entry)})
  if "expected" in wanted or " is" in wanted:
    with pytest.raises(DataError, match=wanted):
      _ = source[0]
  else:
    assert source[0]["caption"] == wanted


def test_a_label_is_of_digits(tmp_path):
  source = tar(tmp_path / "x.tar", {"a.png": None, "a.cls": "²"})
  with pytest.raises(DataError, match="cls a whole number"):
    _ = source[0]


@pytest.mark.parametrize(
  "labels, numbers, classes",
  [
    (["dog", "cat", "dog"], [1, 0, 1], ("cat", "dog")),
    (["2", "0", "10"], [2, 0, 10], ()),
    (["2", "0", "x"], [1, 0, 2], ("0", "2", "x")),
  ],
)
def test_labels_of_metadata_go_before_folders(
  tmp_path, labels, numbers, classes
):
  rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
  images = {f"train/{i}.png": None for i in range(3)}
  files = images | {"train/metadata.csv": f"file_name,label\n{rows}"}
  source = folder(tmp_path, files)
  items = [source[i] for i in range(3)]
  assert [int(item["label"]) for item in items] == numbers
  assert source.classes == classes and items[0].keys() == {"image", "label"}


@pytest.mark.parametrize(
  "labels, line",
  [
    ([1, None], "has labels for 1 of 2 images; b.png is the first without"),
    ([1], "has labels for 1 of 2 images"),
    ([1, -1], "has the label '1'; expected whole numbers from 0, or names"),
    ([1, True], "has the label '1'"),
    (["x", 2], "has the label '2'"),
    ([[1], [2]], r"has the label '\[1\]'"),
  ],
)
def test_labels_of_other_kinds_are_refused(tmp_path, labels, line):
  lines = [
    json.dumps({"file_name": name, "text": "x", "label": label})
    for name, label in zip(("a.png", "b.png"), labels, strict=False)
  ]
  files = {"a.png": None, "b.png": None, "metadata.jsonl": "\n".join(lines)}
  with pytest.raises(DataError, match=line):
    _ = folder(tmp_path, files)[0]
