"""The package of examples/, a class per protocol, works from end to end."""

import pathlib

import numpy as np
import pytest

import ldm_jax
from ldm_jax import config
from ldm_jax.cli import evaluate as evaluate_command
from ldm_jax.cli import sample as sample_command
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.errors import ConfigError

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
COLOR = np.float32([0.8, -0.8, -0.8])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
  """A folder with images.csv and a run of each example config."""
  folder = tmp_path_factory.mktemp("examples")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.syspath_prepend(str(EXAMPLES))
    import make_images

    make_images.main(str(folder))
    ldm_jax.train(str(EXAMPLES / "my_autoencoder.py"), "ae")
    denoiser = str(EXAMPLES / "my_denoiser.py")
    stage = {"first_stage": "ae"}
    ldm_jax.train(denoiser, "run", overrides=stage | {"steps": "10"})
    ldm_jax.train(denoiser, "run", overrides=stage)  # resumes to 20
    ldm_jax.train(denoiser, "again", overrides=stage)
    yield folder


def pipeline():
  return ldm_jax.Pipeline.from_run("run", trust=("my_diffusion",))


def test_a_run_of_user_classes_resumes_bit_for_bit(work):
  from ldm_jax.runtime.monitoring.metric_writer import read_metrics

  losses = [
    [line["loss"] for line in read_metrics(str(work / name)) if "loss" in line]
    for name in ("run", "again")
  ]
  assert losses[0] == losses[1] and len(losses[0]) == 4


def test_its_config_names_user_classes_by_module(work):
  text = (work / "run" / "config.json").read_text()
  for name in (
    "backbone:FourierMixer",
    "conditioner:ColorEmbedder",
    "first_stage:PatchAutoencoder",
    "loss:HuberLoss",
    "source:CsvSource",
    "tracker:ConsoleTracker",
    "transform:MeanColor",
  ):
    assert f'"my_diffusion.{name}"' in text
  names = config.packages(config.load(str(EXAMPLES / "my_denoiser.py")))
  assert names == ("my_diffusion",)


def test_it_is_opened_only_if_its_package_is_trusted(work):
  with pytest.raises(ConfigError, match="--trust my_diffusion"):
    ldm_jax.Pipeline.from_run("run")
  with pytest.raises(CommandError, match="--trust my_diffusion"):
    sample_command.main(["--model=run", "--out=refused"])


def test_it_is_sampled_with_a_user_sampler_and_guidance(work):
  from my_diffusion.guidance import FadingGuidance
  from my_diffusion.sampler import fading_ddim

  pipe = pipeline()
  images = pipe(
    num=2,
    steps=4,
    sampler=fading_ddim,
    guidance=FadingGuidance(3.0),
    conditions={"color": COLOR},
    output="numpy",
  ).images
  assert np.shape(images) == (2, 32, 32, 3)
  plain = pipe(num=2, steps=4, conditions={"color": COLOR}, output="numpy")
  assert not np.array_equal(images, plain.images)


def test_its_conditioner_needs_its_array(work):
  with pytest.raises(ConfigError, match="ColorEmbedder reads 'color'"):
    pipeline()(steps=2)


def test_an_image_of_it_is_repeated_bit_for_bit(work):
  np.save("color.npy", COLOR)
  pipe = pipeline()
  result = pipe(num=2, steps=3, conditions={"color": "color.npy"})
  result.save("repeated")
  request = pipe.request_of("repeated/00001.png")
  again = pipe(request).images[0]
  assert np.array_equal(np.asarray(again), np.asarray(result.images[1]))


def test_the_commands_sample_and_measure_it(work, capsys):
  np.save("color.npy", COLOR)
  flags = ["--trust=my_diffusion", "--num=2", "--steps=2", "--out=images_out"]
  condition = "--condition=color=color.npy"
  assert sample_command.main(["--model=run", condition, *flags]) == 0
  capsys.readouterr()
  metric = "--metric=my_diffusion.metric:colorfulness"
  assert (
    evaluate_command.main(["images_out", metric, "--trust=my_diffusion"]) == 0
  )
  assert "colorfulness" in capsys.readouterr().out


def test_a_run_of_it_is_evaluated(work):
  from my_diffusion.metric import colorfulness

  request = ldm_jax.EvaluationRequest(
    "run",
    out="evaluation",
    num=4,
    steps=2,
    train_images=0,
    metrics=(colorfulness,),
    trust=("my_diffusion",),
  )
  result = ldm_jax.evaluate(request)
  assert {"colorfulness", "colorfulness_reference"} <= set(result.metrics)


def test_its_conditioner_is_refused_by_an_export(work):
  request = ldm_jax.ExportRequest(
    "run", "exported", options=ldm_jax.LoadOptions(trust=("my_diffusion",))
  )
  with pytest.raises(ConfigError, match="this model reads 'color'"):
    ldm_jax.export(request)
  assert not (work / "exported").exists()
