"""Maps, masks, depths and boxes, of files and of tensorflow-datasets."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data.annotations import pad_boxes, read_boxes
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.tfds_source import KNOWN, TfdsSource, tfds_source
from ldm_jax.data.transforms.augment import Augment

RNG = np.random.default_rng(1)
BOXES = [{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}]


def save(path, array):
  Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
  """Two images of 12 x 8 with every kind of annotation."""
  made = {}
  for name in ("a", "b"):
    image = RNG.integers(0, 256, (12, 8, 3)).astype(np.uint8)
    segmap = RNG.integers(0, 9, (12, 8)).astype(np.uint8)
    mask = (RNG.random((12, 8)) < 0.5).astype(np.uint8) * 255
    depth = RNG.integers(10, 200, (12, 8)).astype(np.uint8)
    save(tmp_path / f"{name}.png", image)
    save(tmp_path / f"{name}.map.png", segmap)
    save(tmp_path / f"{name}.mask.png", mask)
    save(tmp_path / f"{name}.depth.png", depth)
    (tmp_path / f"{name}.boxes.json").write_text(json.dumps(BOXES))
    made[name] = image, segmap, mask, depth
  lines = [
    {"file_name": f"{n}.png", "text": n, "score": s}
    for n, s in (("a", 6.5), ("b", 4))
  ]
  text = "\n".join(map(json.dumps, lines))
  (tmp_path / "metadata.jsonl").write_text(text)
  return tmp_path, made


def test_annotations_of_an_image_are_read(folder):
  path, made = folder
  source = Folder(str(path), objects=3)
  assert len(source) == 2
  for i, name in enumerate("ab"):
    item, (image, segmap, mask, depth) = source[i], made[name]
    np.testing.assert_array_equal(item["image"], image)
    np.testing.assert_array_equal(item["segmap"], segmap)
    np.testing.assert_array_equal(item["mask"], mask > 0)
    low, high = depth.min(), depth.max()
    expected = 2 * (depth.astype(float) - low) / (high - low) - 1
    np.testing.assert_allclose(item["depth"], expected, atol=1e-5)
    assert item["boxes"].shape == (3, 5) and (item["boxes"][1:] == -1).all()
    np.testing.assert_allclose(item["boxes"][0], [0.1, 0.2, 0.5, 0.9, 3])
    assert item["score"] == (6.5, 4)[i] and item["caption"] == name


def test_palettes_are_classes(tmp_path):
  save(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
  image = Image.new("P", (4, 4), 7)
  image.putpalette([200] * 768)
  image.save(tmp_path / "a.map.png")
  assert (Folder(str(tmp_path))[0]["segmap"] == 7).all()


def spoil_size(path):
  save(path / "a.map.png", np.zeros((8, 8), np.uint8))


def spoil_colour(path):
  save(path / "a.map.png", np.zeros((12, 8, 3), np.uint8))


def spoil_mask(path):
  (path / "a.mask.png").write_bytes(b"nothing")


def spoil_one(path):
  (path / "b.depth.png").unlink()


def spoil_json(path):
  (path / "a.boxes.json").write_text('{"box": 1}')


def spoil_box(path):
  (path / "a.boxes.json").write_text(
    json.dumps([{"class": 3, "box": [0.5, 0.2, 0.1, 0.9]}])
  )


@pytest.mark.parametrize(
  "spoil, line",
  [
    (spoil_size, "a.map.png: mislabelled image: is 8 x 8, its image 12 x 8"),
    (spoil_colour, "a.map.png: mislabelled image: has colours"),
    (spoil_mask, "a.mask.png: mislabelled image: is not an image"),
    (spoil_one, "b.depth.png is the first that is missing"),
    (spoil_json, "a.boxes.json: mislabelled image: must hold a list"),
    (spoil_box, "increasing within 0 to 1"),
  ],
)
def test_an_error_names_the_annotations_path(folder, spoil, line):
  path, _ = folder
  spoil(path)
  with pytest.raises(ValueError, match=line) as error:
    _ = Folder(str(path))[0]
  assert "\n" not in str(error.value)


def test_boxes_are_padded_or_truncated():
  boxes = np.arange(10.0).reshape(2, 5)
  assert (pad_boxes(boxes, 1) == boxes[:1]).all()
  assert (pad_boxes(boxes, 3)[2] == -1).all()
  with pytest.raises(ValueError, match="No such file"):
    read_boxes("/nowhere.json")


def test_maps_are_cropped_and_sizes_describe_the_crop(folder):
  path, _ = folder
  item = Folder(str(path))[0]
  cut = Augment(8, flip=False, size_conditioning="target").center(item)
  np.testing.assert_array_equal(cut["segmap"], item["segmap"][2:10])
  np.testing.assert_array_equal(cut["mask"], item["mask"][2:10])
  assert cut["sizes"].tolist() == [12, 8, 2, 0, 8, 8]
  score = Augment(16, flip=False, size_conditioning="score").center(item)
  assert score["sizes"].tolist() == [12, 8, 4, 0, 6.5]
  del item["score"]
  with pytest.raises(ValueError, match="needs examples with a score"):
    Augment(16, size_conditioning="score").center(item)


# tensorflow-datasets: the features of each data set, as its code declares them.


def png(array):
  file = io.BytesIO()
  Image.fromarray(array).save(file, "PNG")
  return file.getvalue()


PHOTO = png(np.full((4, 6, 3), 9, np.uint8))
MAP = np.arange(24, dtype=np.uint8).reshape(4, 6)
CORNERS = np.float32([[0.2, 0.1, 0.9, 0.5]])  # top, left, bottom, right
OBJECTS = {"bbox": CORNERS, "label": np.array([3]), "is_crowd": [False]}
PANOPTIC = np.zeros((4, 6, 3), np.uint8)
PANOPTIC[:2] = (5, 1, 0)  # 5 + 256
RECORDS = {
  "imagenet2012": {"image": PHOTO, "label": 2, "file_name": "x"},
  "imagenette": {"image": PHOTO, "label": 2},
  "places365_small": {"image": PHOTO, "label": 2, "filename": "x"},
  "celeb_a_hq/256": {"image": PHOTO, "image/filename": "x"},
  "lsun/bedroom": {"id": "x", "image": PHOTO},
  "coco_captions": {
    "image": PHOTO,
    "captions": {"id": [1, 2], "text": [b"a fox", b"snow"]},
    "objects": OBJECTS,
  },
  "coco/2017": {"image": PHOTO, "objects": OBJECTS},
  "coco/2017_panoptic": {
    "image": PHOTO,
    "panoptic_image": png(PANOPTIC),
    "panoptic_objects": {"id": [261], "label": [6], "bbox": CORNERS},
  },
  "open_images_v4/300k": {"image": PHOTO, "bobjects": OBJECTS},
  "cityscapes/semantic_segmentation": {
    "image_left": PHOTO,
    "segmentation_label": png(MAP),
  },
  "scene_parse150": {"image": PHOTO, "annotation": png(MAP)},
  "oxford_iiit_pet": {
    "image": PHOTO,
    "label": 2,
    "segmentation_mask": MAP[..., None],
  },
}
WANTED = {
  "imagenet2012": {"label"},
  "imagenette": {"label"},
  "places365_small": {"label"},
  "celeb_a_hq/256": set(),
  "lsun/bedroom": set(),
  "coco_captions": {"caption"},
  "coco/2017": {"boxes"},
  "coco/2017_panoptic": {"segmap"},
  "open_images_v4/300k": {"boxes"},
  "cityscapes/semantic_segmentation": {"segmap"},
  "scene_parse150": {"segmap"},
  "oxford_iiit_pet": {"segmap", "label"},
}


def leaves(tree, path=""):
  """Paths of a record, with / between levels, as TfdsSource names features."""
  if not isinstance(tree, dict):
    return [path]
  return [
    leaf
    for name, below in tree.items()
    for leaf in leaves(below, f"{path}/{name}" if path else name)
  ]


@pytest.mark.parametrize("name", RECORDS)
def test_every_mapping_of_the_table_reads_its_data_set(name):
  source, record = tfds_source(name), RECORDS[name]
  vars(source)["_data"] = [record]
  there = leaves(record)
  fields = (source.image, source.caption, source.label, source.segmap)
  vars(source)["_features"] = {f: None for f in fields if f in there}
  assert source.boxes is None or f"{source.boxes}/bbox" in there
  item = source[0]
  assert item.keys() == {"image"} | WANTED[name]
  assert (item["image"] == 9).all() and item["image"].shape == (4, 6, 3)
  if "caption" in item:
    assert item["caption"] == "a fox"
  if "boxes" in item:
    np.testing.assert_allclose(item["boxes"][0], [0.1, 0.2, 0.5, 0.9, 3])
  if "segmap" in item:
    segmap = item["segmap"]
    if "panoptic" in name:
      assert (segmap[:2] == 7).all() and (segmap[2:] == 0).all()
    else:
      np.testing.assert_array_equal(segmap, MAP)


# Builders that run without TensorFlow; they list their own features.
LIVE = (
  "imagenet2012",
  "imagenette",
  "places365_small",
  "celeb_a_hq/256",
  "lsun/bedroom",
  "open_images_v4/300k",
  "cityscapes/semantic_segmentation",
  "scene_parse150",
  "oxford_iiit_pet",
)


@pytest.mark.parametrize("name", LIVE)
def test_mappings_name_features_of_the_builder(name, tmp_path):
  import tensorflow_datasets as tfds

  features = tfds.builder(name, data_dir=str(tmp_path)).info.features
  source = tfds_source(name)
  for field in (source.image, source.segmap):
    assert field is None or field in features
  if source.boxes is not None:
    inner = features[source.boxes].feature
    assert {"bbox", "label"} <= set(inner.keys())
  if "label" in WANTED[name]:
    assert source.label in features


def test_every_data_set_of_the_table_is_tested():
  plain = {name.partition("/")[0] for name in RECORDS} | set(RECORDS)
  assert set(KNOWN) <= plain
  with pytest.raises(ValueError, match="is none of"):
    tfds_source("mnist_of_old")
  assert tfds_source("coco_captions", label="x") == TfdsSource(
    "coco_captions", caption="captions/text", label="x"
  )
