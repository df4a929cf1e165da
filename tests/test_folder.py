"""A folder of images: their order, labels and captions."""

import dataclasses
import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import skimage
from PIL import Image

from ldm_jax.data.sources.folder import Folder
from ldm_jax.errors import ImageError

SHIPPED = pathlib.Path(skimage.__file__).parent / "data"
PHOTOGRAPHS = {  # height and width, from scikit-image's documentation
  "astronaut.png": (512, 512),
  "chelsea.png": (300, 451),
  "coffee.png": (400, 600),
  "hubble_deep_field.jpg": (872, 1000),
  "rocket.jpg": (427, 640),
}


def fill(root, names):
  """Flat images whose grey value is their index in `names`."""
  for value, name in enumerate(names):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value, value, value)).save(path)
  return str(root)


def values(folder):
  return [int(folder[i]["image"][0, 0, 0]) for i in range(len(folder))]


def test_photographs_that_ship_with_scikit_image(tmp_path):
  for name in PHOTOGRAPHS:
    shutil.copy(SHIPPED / name, tmp_path)
  folder = Folder(str(tmp_path))
  assert folder.names == tuple(PHOTOGRAPHS)
  for index, shape in enumerate(PHOTOGRAPHS.values()):
    assert folder[index].keys() == {"image"}
    assert folder[index]["image"].shape == (*shape, 3)
  red, green, blue = folder[1]["image"].mean((0, 1))
  assert red > green > blue  # Chelsea is a ginger cat


def test_the_whole_of_scikit_images_folder_can_be_read():
  # Pillow does not read the separate planes of one; the other is animated.
  odd = ("multipage_rgb.tif", "no_time_for_that_tiny.gif")
  folder = Folder(str(SHIPPED), without=odd)
  assert {"camera.png", "multipage.tif", "logo.png"} <= set(folder.names)
  assert not any(
    name.endswith((".npz", ".xml", ".py")) for name in folder.names
  )
  for index in range(len(folder)):
    image = folder[index]["image"]
    assert image.dtype == np.uint8 and image.shape[2] == 3
  for name, kind in zip(odd, ("not_an_image", "animated"), strict=True):
    with pytest.raises(ImageError, match=kind):
      Folder(str(SHIPPED), only=(name,))[0]


def test_images_are_in_the_order_of_names_and_other_files_are_skipped(tmp_path):
  path = fill(tmp_path, ["b.png", "a.JPG", "c.webp"])
  for name in "notes.md", ".hidden.png", "thumbs.db", ".cache/x.png":
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no image")
  assert Folder(path).names == ("a.JPG", "b.png", "c.webp")
  assert values(Folder(path)) == [1, 0, 2]


def test_class_folders_become_labels(tmp_path):
  path = fill(tmp_path, ["dog/1.png", "cat/deep/2.png", "cat/1.png"])
  folder = Folder(path)
  assert folder.classes == ("cat", "dog")
  assert folder.names == ("cat/1.png", "cat/deep/2.png", "dog/1.png")
  labels = [folder[i]["label"] for i in range(3)]
  assert labels == [0, 0, 1] and labels[0].dtype == np.int32
  assert "caption" not in folder[0]


def test_labels_do_not_depend_on_what_is_kept(tmp_path):
  path = fill(tmp_path, ["cat/1.png", "dog/1.png", "eel/1.png"])
  assert Folder(path, only=("eel/1.png",))[0]["label"] == 2
  assert Folder(path, without=("cat/1.png",))[0]["label"] == 1


def test_an_image_outside_the_class_folders_means_no_labels(tmp_path):
  folder = Folder(fill(tmp_path, ["cat/1.png", "stray.png"]))
  assert folder.classes == () and "label" not in folder[0]


def test_captions_come_from_three_files_in_this_order(tmp_path):
  names = ["own.png", "folder/x.png", "folder/y.jpg", "meta.png", "none.png"]
  path = fill(tmp_path, names)
  (tmp_path / "own.txt").write_text(" a red\n circle \n", encoding="utf-8")
  (tmp_path / "folder/caption.txt").write_text("the folder's", encoding="utf-8")
  (tmp_path / "folder/y.txt").write_text("its own: ä", encoding="utf-8-sig")
  lines = [
    {"file_name": "own.png", "text": "not this"},
    {"file_name": "./meta.png", "text": "from metadata", "more": 1},
  ]
  (tmp_path / "metadata.jsonl").write_text(
    "\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8"
  )
  folder = Folder(path)
  captions = {n: folder[i]["caption"] for i, n in enumerate(folder.names)}
  assert captions == {
    "own.png": "a red circle",
    "folder/x.png": "the folder's",
    "folder/y.jpg": "its own: ä",
    "meta.png": "from metadata",
    "none.png": "",
  }


def test_every_subset_of_a_folder_with_captions_has_captions(tmp_path):
  path = fill(tmp_path, ["a.png", "b.png"])
  (tmp_path / "a.txt").write_text("text", encoding="utf-8")
  assert Folder(path, without=("a.png",))[0]["caption"] == ""


def test_only_and_without_divide_a_folder(tmp_path):
  path = fill(tmp_path, [f"{i}.png" for i in range(6)])
  held = ("4.png", "1.png")
  assert values(Folder(path, only=held)) == [1, 4]
  assert values(Folder(path, without=held)) == [0, 2, 3, 5]
  assert values(Folder(path, only=held, without=("4.png", "gone.png"))) == [1]
  with pytest.raises(ValueError, match=r"lacks 1 of the 2 .*'9\.png'"):
    len(Folder(path, only=("9.png", "1.png")))
  with pytest.raises(ValueError, match=r"no image of .* is left"):
    len(Folder(path, only=held, without=held))


def test_links_are_followed_and_cannot_loop(tmp_path):
  elsewhere = tmp_path / "elsewhere"
  fill(elsewhere, ["1.png"])
  root = tmp_path / "root"
  fill(root, ["cat/1.png"])
  (root / "dog").symlink_to(elsewhere)
  (root / "cat" / "up").symlink_to(root)
  assert Folder(str(root)).names == ("cat/1.png", "dog/1.png")


def test_a_missing_or_empty_folder_is_an_error_of_one_line(tmp_path):
  (tmp_path / "notes.md").write_text("text", encoding="utf-8")
  cases = {
    str(tmp_path / "absent"): "does not exist",
    str(tmp_path / "notes.md"): "is not a folder",
    str(tmp_path): r"0 images among the 1 files .*\.jpg",
  }
  for path, message in cases.items():
    with pytest.raises(ValueError, match=message) as caught:
      len(Folder(path))
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_bad_metadata_names_its_line(tmp_path):
  path = fill(tmp_path, ["a.png"])
  for bad in '{"file_name": "a.png"}', "[1]", "{", "7":
    text = '{"file_name": "a.png", "text": "x"}\n' + bad
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2") as caught:
      Folder(path)[0]
    assert "\n" not in str(caught.value)


def test_captions_that_are_not_utf8_are_named(tmp_path):
  path = fill(tmp_path, ["a.png"])
  (tmp_path / "a.txt").write_bytes(b"caf\xe9")
  with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
    Folder(path)[0]


def test_the_error_of_a_bad_image_names_it(tmp_path):
  path = fill(tmp_path, ["a.png", "b.png"])
  (tmp_path / "b.png").write_bytes(b"nothing")
  with pytest.raises(ImageError, match=r"b\.png"):
    Folder(path)[1]


def test_a_folder_is_hashable_and_can_be_pickled(tmp_path):
  folder = Folder(fill(tmp_path, ["a.png", "b.png"]), only=("b.png",))
  assert len(folder) == 1  # and what is cached changes nothing:
  assert folder == dataclasses.replace(folder) and hash(folder)
  assert values(pickle.loads(pickle.dumps(folder))) == [1]
  with pytest.raises(IndexError):
    folder[1]
