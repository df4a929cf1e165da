"""Class names: of sources, in a run, in a request, and in an export."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from test_resume import experiment_of, folder, run_of  # noqa: F401, a fixture

from ldm_jax import config
from ldm_jax.cli import info
from ldm_jax.cli.sample import parser
from ldm_jax.data.fingerprint import changes, fingerprint
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.cached_latents import write_manifest
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.mix import Mix
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.data.sources.shards import Shards
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.pretrained.inspect import inspect
from ldm_jax.run import class_names
from ldm_jax.sampling.export.exported_runner import class_number as exported
from ldm_jax.sampling.inputs.class_labels import class_number, with_class_number
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.training.preparation.prepare import prepare
from ldm_jax.training.preparation.request import PrepareRequest

NAMES = ("Ball", "cat", "10")


def test_names_of_glyphs_are_those_of_the_labels():
  source = Glyphs(size=20)
  for index in range(20):
    sample = source[index]
    colour, shape = source.classes[sample["label"]].split()
    assert colour in sample["caption"] and shape in sample["caption"]


def test_sources_of_sources_have_their_names(folder):  # noqa: F811
  source, other = Folder(str(folder)), Glyphs(size=2)
  assert Mix((source, source), (1.0, 2.0)).classes == ("b", "c")
  assert Mix((source, other), (1.0, 2.0)).classes == ()
  assert Neighbours(source, "none").classes == ("b", "c")


def test_prepared_images_have_the_names_of_their_source(folder, tmp_path):  # noqa: F811
  out = str(tmp_path / "out")
  prepare(PrepareRequest(experiment_of(folder), out, size=8))
  source = Shards(out)
  assert source.classes == ("b", "c") and source[2]["label"] == 1
  assert Shards(f"{out}/*.array_record").classes == ()
  write_manifest(out, {"classes": [1], "is_complete": True})
  with pytest.raises(DataError, match="expected the names"):
    _ = Shards(out).classes


def test_names_that_were_not_recorded_are_no_change(folder):  # noqa: F811
  now = fingerprint(Folder(str(folder)))
  assert changes(now | {"classes": []}, now) == []


def test_a_run_has_the_names_and_info_lists_them(tmp_path, folder, capsys):  # noqa: F811
  experiment = experiment_of(folder)
  stage = config.load("glyphs_autoencoder").task.autoencoder
  task = experiment.task.with_first_stage(stage)
  run = run_of(tmp_path, dataclasses.replace(experiment, task=task))
  labels = jax.ShapeDtypeStruct((128,), np.int32)
  dataclasses.replace(run, batch=run.batch | {"label": labels}).write()
  assert class_names(run.folder) == ("b", "c")
  assert info.main([run.folder]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found == inspect(run.folder)
  assert found["classes"] == ["b", "c"] and found["size"] == [8, 8]
  assert found["data"] == {
    "source": "Folder",
    "path": str(folder),
    "examples": 3,
  }
  assert found["first stage"]["latents"] == list(stage.latent_shape(8, 8))
  assert found["step"] == 0
  (tmp_path / "run" / "data.json").write_text('{"training data": {}}')
  with pytest.raises(ConfigError, match=r"data\.json is damaged"):
    class_names(run.folder)


def numbered(label, names=NAMES, **fields):
  request = GenerationRequest(class_label=label, **fields)
  return with_class_number(request, names).class_label


@pytest.mark.parametrize("label, number", [("cat", 1), ("ball", 0), (2, 2)])
def test_names_become_numbers(label, number):
  assert numbered(label) == number
  assert exported([{"kind": "class", "names": NAMES}], str(NAMES[number])) == (
    number
  )


def test_a_number_is_a_number_even_where_a_class_has_that_name(caplog):
  flags, _ = parser().read(["--model=m", "--class_label=10"])
  with caplog.at_level(logging.WARNING):
    assert numbered(flags.class_label) == 10 and numbered(None) is None
  assert "the class named '10' is 2" in caplog.text
  assert numbered("10") == 2


@pytest.mark.parametrize(
  "name, names, line",
  [
    ("bal", NAMES, "did you mean 'Ball'.*3 classes are 'Ball', 'cat', '10'"),
    ("x", tuple("abcdefghijkl"), "12 classes are 'a', .*'j', ... "),
    ("CAT", ("cat", "Cat"), "no class is named 'CAT'"),
    ("cat", (), "not known; give a number"),
  ],
)
def test_unknown_names_are_one_line(name, names, line):
  with pytest.raises(ConfigError, match=line):
    class_number(name, names)
  with pytest.raises(SystemExit, match="no class is named"):
    exported([{"kind": "class", "names": names}], name)


def test_a_classifier_has_the_names_of_its_run(tmp_path, folder):  # noqa: F811
  run = run_of(tmp_path, experiment_of(folder))
  assert numbered("c", (), classifier=run.folder) == 1
