"""A prepared tensorflow-datasets folder is a source, without TensorFlow."""

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ldm_jax.data.sources.tfds_source import TfdsSource
from ldm_jax.errors import ConfigError, DataError, ImageError

BUILDER = '''
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

def png(mode, value):
  file = io.BytesIO()
  Image.new(mode, (7, 5), value).save(file, "PNG")
  file.seek(0)
  return file

class TinyAnimals(tfds.core.GeneratorBasedBuilder):
  """Seven animals."""
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    f = tfds.features
    return self.dataset_info_from_configs(features=f.FeaturesDict({
      "image": f.Image(shape=(None, None, 3)),
      "grey": f.Image(shape=(None, None, 1)),
      "glass": f.Image(shape=(None, None, 4)),
      "raw": f.Tensor(shape=(4, 4, 3), dtype=np.uint8),
      "bad": f.Image(shape=(None, None, 3)),
      "label": f.ClassLabel(names=["cat", "dog"]),
      "caption": f.Text(),
      "more": f.Sequence({"text": f.Text()}),
    }))

  def _split_generators(self, manager):
    return {"train": self._generate_examples(7, 0),
            "test": self._generate_examples(2, 100)}

  def _generate_examples(self, count, first):
    for i in range(first, first + count):
      yield i, {
        "image": png("RGB", (i, 2, 3)), "grey": png("L", i),
        "glass": png("RGBA", (0, 0, 0, 0)),
        "raw": np.full((4, 4, 3), i, np.uint8),
        "bad": io.BytesIO(png("RGB", 0).getvalue()[:44]),
        "label": i % 2, "caption": f"number {i}",
        "more": [{"text": f"first {i}"}, {"text": "second"}],
      }
'''

PREPARE = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny_animals.tiny_animals_dataset_builder import TinyAnimals
builder = TinyAnimals(data_dir=sys.argv[2], file_format="array_record")
builder.download_and_prepare()
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Prepared by another process: this one has the files, but no builder."""
  root = tmp_path_factory.mktemp("tfds")
  package = root / "code" / "tiny_animals"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("", encoding="utf-8")
  code = textwrap.dedent(BUILDER)
  module = package / "tiny_animals_dataset_builder.py"
  module.write_text(code, encoding="utf-8")
  command = [sys.executable, "-c", PREPARE, root / "code", root / "data"]
  subprocess.run(command, check=True, capture_output=True, timeout=120)
  return str(root / "data")


def numbers(source):
  return sorted(int(source[i]["image"][0, 0, 0]) for i in range(len(source)))


def test_images_captions_and_labels(data_dir):
  source = TfdsSource("tfds:tiny_animals", data_dir=data_dir)
  assert len(source) == 7 and source.classes == ("cat", "dog")
  assert numbers(source) == list(range(7))
  for index in range(7):  # tfds has shuffled them
    item = source[index]
    assert item.keys() == {"image", "caption", "label"}
    number = int(item["image"][0, 0, 0])
    np.testing.assert_array_equal(
      item["image"], np.full((5, 7, 3), (number, 2, 3))
    )
    assert item["caption"] == f"number {number}"
    assert item["label"] == number % 2 and item["label"].dtype == np.int32
  assert "tensorflow" not in sys.modules


def test_splits(data_dir):
  assert numbers(TfdsSource("tiny_animals", "test", data_dir)) == [100, 101]
  assert len(TfdsSource("tiny_animals:1.0.0", "train[:3]", data_dir)) == 3
  assert len(TfdsSource("tiny_animals", "train+test", data_dir)) == 9


def test_other_features(data_dir):
  def item(**features):
    return TfdsSource("tiny_animals", "train", data_dir, **features)[0]

  number = int(item()["image"][0, 0, 0])
  grey = item(image="grey", label=None)
  assert grey.keys() == {"image", "caption"}
  np.testing.assert_array_equal(grey["image"], np.full((5, 7, 3), number))
  raw = item(image="raw", caption="more/text")
  np.testing.assert_array_equal(raw["image"], np.full((4, 4, 3), number))
  assert raw["caption"] == f"first {number}"
  assert item(image="glass")["image"].min() == 255  # transparent over white


def test_the_error_of_a_bad_image_names_its_record(data_dir):
  source = TfdsSource("tiny_animals", data_dir=data_dir, image="bad")
  with pytest.raises(ImageError, match=r"tiny_animals\[train\] 3"):
    source[3]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"label": "lable"}, "no feature 'lable' for label; it has bad, caption"),
    ({"image": "pixels"}, "no feature 'pixels' for image"),
    ({"split": "val"}, "no split 'val'; it has test, train"),
    ({"split": "train[:x]"}, "no split"),
    ({"name": "mnist"}, r"not prepared in .*mnist.*array_record"),
    ({"name": "no_such_thing"}, "cannot open 'no_such_thing'"),
  ],
)
def test_errors_are_of_one_line(data_dir, fields, message):
  fields = {"name": "tiny_animals", "data_dir": data_dir} | fields
  with pytest.raises(ValueError, match=message) as caught:
    len(TfdsSource(**fields))
  assert "\n" not in str(caught.value)


def test_a_format_that_cannot_be_read_at_random(data_dir, tmp_path):
  shutil.copytree(data_dir, tmp_path / "data")
  info = tmp_path / "data/tiny_animals/1.0.0/dataset_info.json"
  stored = json.loads(info.read_text(encoding="utf-8"))
  stored["fileFormat"] = "tfrecord"
  info.write_text(json.dumps(stored), encoding="utf-8")
  with pytest.raises(ValueError, match=r"access.*array_record") as caught:
    len(TfdsSource("tiny_animals", data_dir=str(tmp_path / "data")))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "features",
  [
    {"type": "evil_features.Image", "content": {}},
    {"pythonClassName": "tensorflow_datasets.x", "featuresDict": {
      "features": {"a": {"pythonClassName": "evil_features.Image"}}}},
    {"type": "tensorflow_datasets.core.features.image_feature.Image",
     "proto_cls": "evil_features.Proto", "content": {}},
  ],
)  # fmt: skip
def test_no_module_is_imported_that_a_data_set_names(
  tmp_path, monkeypatch, features
):
  (tmp_path / "evil_features.py").write_text("raise SystemExit('imported')")
  monkeypatch.syspath_prepend(str(tmp_path))
  folder = tmp_path / "some" / "1.0.0"
  folder.mkdir(parents=True)
  (folder / "features.json").write_text(json.dumps(features))
  source = TfdsSource("some", data_dir=str(tmp_path))
  with pytest.raises(ConfigError, match="which is not of tensorflow-datasets"):
    len(source)
  assert "evil_features" not in sys.modules
  (folder / "features.json").write_text("[1]")
  with pytest.raises(DataError, match="expected a JSON object"):
    len(source)
