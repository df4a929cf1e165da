"""Every label, class map, box and id is checked where it is read."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from ldm_jax import config
from ldm_jax.data.bad_images import BadImageLog, SkipBadImages
from ldm_jax.data.label_checks import check_batch, label_problem
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.mix import Mix
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.sampling.inputs.prompt_inputs import TextInput, check_ids
from ldm_jax.training.checks import check_conditions
from ldm_jax.training.dataloading import classes_of


@dataclasses.dataclass(frozen=True)
class Labels:
  labels: tuple

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    return {"label": self.labels[index], "index": index}


@pytest.mark.parametrize(
  "wrong", [-1, 10, 500, np.int64(-7), 2.5, float("nan"), "cat", None]
)
def test_a_wrong_label_is_a_bad_example_with_its_path(wrong, tmp_path):
  path = tmp_path / "bad_samples.jsonl"
  log = BadImageLog(str(path), 0.5)
  source = SkipBadImages(Labels((0, wrong, 9, 3)), log, {"label": 10})
  assert [source[i]["index"] for i in range(4)] == [0, 2, 2, 3]
  line = json.loads(path.read_text())
  assert line["kind"] == "mislabelled" and "label" in line["detail"]
  assert line["path"] == "example 1 of Labels" and len(log) == 1


def test_more_wrong_labels_than_allowed_end_the_run():
  source = SkipBadImages(Labels((-1, 0)), BadImageLog(), {"label": 10})
  with pytest.raises(DataError, match=r"mislabelled 1.*label -1 is negative"):
    source[0]


VALUES = {
  "label -1 is negative": ("label", np.int32(-1)),
  "label 12 needs classes=13": ("label", np.array([3, 12])),
  "segmap 11 needs classes=12": ("segmap", np.full((2, 2), 11, np.uint8)),
  "boxes 10 needs classes=11": ("boxes", [[0, 0, 1, 1, 10]]),
  "boxes has a corner outside": ("boxes", [[0, 0, 1.5, 1, 3]]),
  "boxes -3 is negative": ("boxes", [[0, 0, 1, 1, -3]]),
  "tokens 10 needs classes=11": ("tokens", np.arange(11)[None]),
}


@pytest.mark.parametrize("message", VALUES)
def test_what_is_outside_is_named(message):
  name, value = VALUES[message]
  assert message in label_problem(name, value, 10)
  with pytest.raises(DataError, match=message):
    check_batch({name: np.asarray(value)}, {name: 10})


def test_what_is_inside_passes():
  boxes = [[0, 0, 1, 1, 9], [-1, -1, -1, -1, -1]]
  arrays = {"boxes": boxes, "label": 0, "tokens": np.arange(10), "empty": []}
  for name, value in arrays.items():
    assert not label_problem(name, value, 10)


def images(folder, count=4):
  folder.mkdir()
  for i in range(count):
    Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
    Image.new("L", (8, 8), i).save(folder / f"{i}.map.png")


def test_a_wrong_map_and_a_wrong_annotation_name_their_files(tmp_path):
  images(tmp_path / "a")
  Image.new("L", (8, 8), 200).save(tmp_path / "a" / "1.map.png")
  Image.new("RGB", (8, 8)).save(tmp_path / "a" / "2.map.png")
  path = tmp_path / "bad.jsonl"
  log = BadImageLog(str(path), 1.0)
  folder = Folder(str(tmp_path / "a"))
  source = SkipBadImages(folder, log, {"segmap": 150})
  assert [source[i]["segmap"][0, 0] for i in range(4)] == [0, 3, 3, 3]
  found = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line["path"].rpartition("/")[2] for line in found] == [
    "1.png",
    "2.map.png",
  ]
  mixed = Mix((Labels((1,)), folder), (1.0, 1.0))
  assert mixed.path_of(len(mixed) - 1).endswith("3.png")


@pytest.mark.parametrize(
  "name, array, count",
  [
    ("glyphs_class", "label", None),
    ("glyphs_classifier", "label", None),
    ("glyphs_segmentation", "segmap", None),
    ("glyphs_layout", "boxes", None),
    ("glyphs_text", "tokens", 1000),
    ("ldm/layout_open_images256", "layout", 8192),
    ("sd/sd1", "tokens", 49408),
  ],
)
def test_every_network_says_what_it_has_rows_for(name, array, count):
  counts = classes_of(config.load(name))
  assert array in counts and (count is None or counts[array] <= count)


def test_a_negative_label_of_the_first_example_is_refused_at_once():
  experiment = config.load("glyphs_class")
  example = {"label": np.array([-1])}
  task = dataclasses.replace(
    experiment.task,
    model=dataclasses.replace(experiment.task.model, conditioners=()),
  )
  for part in experiment.task.model.conditioners:
    assert classes_of(experiment)[part.input_key] == part.classes
  assert label_problem("label", example["label"], 3)
  assert not classes_of(dataclasses.replace(experiment, task=task))
  with pytest.raises(ConfigError, match="a conditioner reads 'label'"):
    check_conditions(experiment, None, {"image": np.zeros((1, 8, 8, 3))})


def test_a_prompts_ids_are_checked_against_every_embedding():
  null = np.zeros(2, bool)
  one = TextInput(np.array([[0, 5], [9, 2]]), null)
  check_ids([one], [10])
  two = TextInput(np.array([[[0, 5], [3, 6]]]), null)
  check_ids([two], [6, 7])
  for texts, sizes, wrong in (
    (one, [9], 9),
    (two, [6, 6], 6),
    (two, [5, 7], 5),
  ):
    with pytest.raises(
      ConfigError, match=f"gives id {wrong}, and .*--tokenizer"
    ):
      check_ids([texts], sizes)
