"""A user-defined metric is given as an object, or by name with trust."""

import json

import numpy as np
import pytest
from PIL import Image
from test_inception import path as weights  # noqa: F401
from test_inception import variables  # noqa: F401

from ldm_jax.cli import evaluate as command
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.evaluate import evaluate
from ldm_jax.evaluation.request import EvaluationRequest

MODULE = '''
import numpy as np

def brightness(samples, reference):
  """Mean grey level of both sets."""
  mean = lambda images: float(np.mean([image.mean() for image in images]))
  found = {"brightness": mean(samples)}
  if reference is not None:
    found["brightness_reference"] = mean(reference)
  return found

class Activity:
  """The mean of Inception's features."""
  inputs = "features"

  def __call__(self, samples, reference):
    return {"activity": samples.pooled.mean()}

def shadow(samples, reference):
  return {"brightness": 0.0}

def wrong(samples, reference):
  return 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Three images, and the user's package on the path."""
  package = tmp_path / "mine"
  package.mkdir()
  (package / "__init__.py").write_text("")
  (package / "metrics.py").write_text(MODULE)
  monkeypatch.syspath_prepend(str(tmp_path))
  folder, rng = tmp_path / "images", np.random.default_rng(0)
  folder.mkdir()
  for i, image in enumerate(rng.integers(0, 256, (3, 8, 8, 3), np.uint8)):
    Image.fromarray(image).save(folder / f"{i}.png")
  return folder


def grey(folder):
  images = [np.asarray(Image.open(path)) for path in folder.iterdir()]
  return pytest.approx(np.mean(images))


def test_a_metric_is_named_on_the_command_line(folder, capsys):
  flags = [str(folder), str(folder), "--metric=mine.metrics:brightness"]
  assert command.main([*flags, "--trust=mine"]) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found["brightness"] == found["brightness_reference"] == grey(folder)
  with pytest.raises(CommandError, match="--trust mine") as stop:
    command.main(flags)
  assert stop.value.code == 2


def test_a_metric_is_given_as_an_object_and_needs_no_reference(folder):
  from mine.metrics import brightness

  request = EvaluationRequest(str(folder), metrics=(brightness,))
  result = evaluate(request)
  assert result.metrics["brightness"] == grey(folder)
  assert "brightness_reference" not in result.metrics
  assert result.metrics["fid"] == "unavailable"


@pytest.mark.slow
def test_a_metric_of_features_has_a_number_for_each_mode(
  folder,
  weights,  # noqa: F811
):
  request = EvaluationRequest(
    str(folder),
    inception=str(weights),
    allow_small=True,
    num=3,  # and no larger batch
    metrics=("mine.metrics:Activity",),
    trust=("mine",),
  )
  found = evaluate(request).metrics
  assert found["activity_legacy"] > 0 and found["activity_clean"] > 0


@pytest.mark.parametrize(
  "names, message",
  [
    (["mine.metrics"], "must be named as package.module:Name"),
    (["mine.metrics:absent"], "cannot be imported"),
    (["mine.metrics:wrong"], "returned int"),
    (["mine.metrics:MODULE"], "cannot be imported"),
    (["mine.metrics:Activity"], "takes features; give inception"),
    (["mine.metrics:brightness", "mine.metrics:shadow"], "rename it"),
  ],
)
def test_an_unusable_metric_is_an_error(folder, names, message):
  with pytest.raises(ConfigError, match=message):
    evaluate(
      EvaluationRequest(str(folder), metrics=tuple(names), trust=("mine",))
    )


@pytest.mark.parametrize(
  "fields",
  [
    {"train_images": -1},
    {"lpips_trunk": "x.pth"},
    {"write_statistics": "x.npz"},
    {"steps": 0},
  ],
)
def test_a_request_is_validated_when_it_is_made(fields):
  with pytest.raises(ConfigError):
    EvaluationRequest("samples", **fields)
