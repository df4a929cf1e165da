"""`ldm-jax evaluate --model` and `ldm_jax.evaluate_first_stages`."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from PIL import Image
from test_dinov2 import CONFIG

import ldm_jax
from ldm_jax.cli import evaluate as command
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.first_stage import evaluate
from ldm_jax.evaluation.first_stage.charts import chart_side, glyph_mosaics
from ldm_jax.evaluation.first_stage.load import LoadedFirstStage, short_names
from ldm_jax.evaluation.first_stage.sheet import CELL, comparison_sheet
from ldm_jax.evaluation.metric_networks import MetricNetworks
from ldm_jax.evaluation.metrics.frechet import Moments, frechet_distance
from ldm_jax.evaluation.metrics.latent_neighbours import interpolated_latents
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack, PixelSpace
from ldm_jax.nn.encoders.inception import Features
from ldm_jax.pretrained.networks import build
from ldm_jax.weights.naming.convert import revert, shapes
from ldm_jax.weights.naming.parameter_names import name_table
from ldm_jax.weights.safetensors_files import write_safetensors

PSNR_OF_HALF = 20 * np.log10(2)


class Halved(PixelSpace):
  """Latents that are the pixels, and images of half of the contrast."""

  def decode(self, latents):
    return latents / 2


@pytest.fixture
def identities(monkeypatch):
  """Models "perfect" and "halved", without files."""
  kinds = {"perfect": PixelSpace(), "halved": Halved()}

  def load(paths, sharding, trust):
    del sharding, trust
    return [LoadedFirstStage(path, path, kinds[path], {}) for path in paths]

  monkeypatch.setattr(evaluate, "load_first_stages", load)


def request(*models, **options):
  options = {"size": 64, "num": 3, "batch": 2, "rounds": 1} | options
  return ldm_jax.FirstStageRequest(models, **options)


def test_pixels_themselves_are_perfect(identities, tmp_path):
  out = str(tmp_path / "out")
  result = ldm_jax.evaluate_first_stages(request("perfect", "halved", out=out))
  perfect, halved = (stage.metrics for stage in result.stages)
  assert perfect["psnr"] == np.inf
  assert perfect["ssim"] == pytest.approx(1)
  for name, value in perfect.items():
    if name.startswith("error_"):
      assert value == 0
      assert halved[name] == pytest.approx(0.25, abs=0.02)
    elif name.startswith("text_"):
      assert value == 1
    elif name.startswith("contrast_"):
      assert value == pytest.approx(1)
      assert halved[name] == pytest.approx(0.5, abs=0.01)
  assert perfect["phase_degrees"] == pytest.approx(0, abs=1e-6)
  assert "kl_nats" not in perfect and "rfdd" not in perfect
  assert (perfect["stride"], perfect["channels"]) == (1, 3)
  assert perfect["pixel_values_per_latent"] == 1
  assert perfect["decoded_per_second"] > 0 and perfect["decoding_MiB"] > 0
  lines = result.table().splitlines()
  assert lines[0].startswith("| model | stride |")
  assert [line.split(" | ")[0] for line in lines[2:]] == [
    "| perfect",
    "| halved",
  ]
  stored = json.loads((tmp_path / "out/first_stages.json").read_text())
  assert stored == result.to_json()
  assert stored["n"] == 3 and stored["first_stages"][0]["psnr"] == "inf"
  assert (tmp_path / "out/table.md").read_text() == result.table() + "\n"
  sheet = np.asarray(Image.open(tmp_path / "out/sheet.png"))
  assert sheet.shape[1] == 5 * CELL + 4 * 2  # original, two columns of each
  assert result.files == tuple(
    f"{out}/{name}" for name in ("sheet.png", "table.md", "first_stages.json")
  )


@pytest.fixture
def dino(tmp_path):
  """The folder of a small random DINOv2, in transformers' format."""
  folder = tmp_path / "dinov2"
  folder.mkdir()
  config = CONFIG | {"num_hidden_layers": 1}
  module = build(config)
  params = random_variables(module, jnp.zeros((1, 12, 12, 3)))["params"]
  table = name_table("dinov2", "diffusers", shapes(params))
  write_safetensors(str(folder / "model.safetensors"), revert(table, params))
  (folder / "config.json").write_text(json.dumps(config))
  return str(folder)


def test_features_of_dinov2_are_compared(identities, dino, tmp_path, caplog):
  options = {"dino": dino, "allow_small": True, "num": 6}
  result = ldm_jax.evaluate_first_stages(
    request("perfect", "halved", **options)
  )
  perfect, halved = (stage.metrics["rfdd"] for stage in result.stages)
  assert abs(perfect) < 1e-4 * halved
  left_out = [line for line in caplog.messages if "left out" in line]
  assert [line.split(";")[0] for line in left_out] == [
    *("left out: rfid, ifid", "left out: lpips")
  ]
  for name, divisor in (("one", 1), ("two", 2)):
    (tmp_path / name).mkdir()
    for i, image in enumerate(glyph_mosaics(3, 64)):
      Image.fromarray(image // divisor).save(tmp_path / name / f"{i}.png")
  folders = [str(tmp_path / name) for name in ("two", "one")]
  options = {"dino": dino, "allow_small": True}
  found = ldm_jax.evaluate(ldm_jax.EvaluationRequest(*folders, **options))
  assert found.metrics["fdd"] > 0


class MeanColours(MetricNetworks):
  """Features of Inception's place that are an image's mean colours."""

  def features(self, images):
    rows = images.pixels().reshape(len(images), -1, 3).mean(1)
    return {"clean": Features(*[rows] * len(Features._fields))}


def test_interpolated_images_are_compared_with_the_originals(
  identities, monkeypatch
):
  """Of pixels themselves rFID is 0, and iFID that of images half way."""
  monkeypatch.setattr(evaluate, "MetricNetworks", MeanColours)
  result = ldm_jax.evaluate_first_stages(request("perfect", num=8))
  metrics = result.stages[0].metrics
  assert metrics["rfid_clean"] == pytest.approx(0, abs=1e-9)
  assert metrics["rsfid_clean"] == pytest.approx(0, abs=1e-9)
  images = glyph_mosaics(8, 64)
  between = interpolated_latents(images / np.float32(127.5) - 1)
  levels = np.clip(np.floor((between + 1) * 127.5 + 0.5), 0, 255)
  moments = [
    Moments.of(x.reshape(8, -1, 3).mean(1) / 255) for x in (images, levels)
  ]
  assert metrics["ifid_clean"] > 0
  np.testing.assert_allclose(
    metrics["ifid_clean"], frechet_distance(*moments), rtol=0.05
  )


def test_sheets_show_errors_amplified():
  image = np.full((CELL, CELL, 3), 100, np.uint8)
  sheet = comparison_sheet({"x": image}, {"a": {"x": image + np.uint8(10)}})
  columns = [sheet[0, i * (CELL + 2), 0] for i in range(3)]
  assert columns == [100, 110, 40]


def test_mosaics_are_of_different_images():
  mosaics = glyph_mosaics(2, 96)
  assert mosaics.shape == (2, 96, 96, 3)
  assert (mosaics[0] != mosaics[1]).any()
  np.testing.assert_array_equal(mosaics[0, :64, :64], glyph_mosaics(1, 64)[0])
  assert chart_side(64, [8]) == 64
  assert chart_side(100, [8, 32]) == 128
  assert chart_side(32, [128]) == 128


def test_names_are_as_short_as_they_can_be():
  assert short_names(["runs/a", "runs/b.safetensors"]) == ["a", "b.safetensors"]
  assert short_names(["runs/a", "sd/vae"]) == ["a", "sd/vae"]
  assert short_names(["sd/vae", "xl/vae"]) == ["sd/vae", "xl/vae"]
  assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
  assert short_names(["a", "a"]) == ["a (1)", "a (2)"]


def test_a_published_folder_is_compared(tmp_path, capsys):
  """Its latents are Gaussian; what it cannot encode is refused."""
  stage = Autoencoder(ConvStack(8, (1, 1), 1, groups=4), 4)
  params = random_variables(
    stage, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 4))
  )
  folder = str(tmp_path / "vae")
  ldm_jax.save_pretrained(stage, params, folder)
  photographs = tmp_path / "photographs"
  photographs.mkdir()
  rng = np.random.default_rng(0)
  for i in range(2):
    pixels = rng.integers(0, 256, (70, 80, 3), np.uint8)
    Image.fromarray(pixels).save(photographs / f"{i}.png")
  flags = [str(photographs), "--model", folder, "--num=2", "--batch=2"]
  assert command.main([*flags, "--size=64", "--rounds=1"]) == 0
  printed = capsys.readouterr().out.splitlines()
  (found,) = json.loads(printed[-1])["first_stages"]
  assert found["stride"] == 2 and found["kl_nats"] > 0
  assert len(found["details"]["latents"]["kl"]) == 4
  assert len(found["details"]["patterns"]) == 28
  with pytest.raises(CommandError, match="image size 33 must be a multiple"):
    command.main([*flags, "--size=33"])


def test_what_cannot_be_compared_is_refused(identities, tmp_path):
  (tmp_path / "config.json").write_text('{"experiment": {}}')
  with pytest.raises(ConfigError, match="is a run; the images are a folder"):
    ldm_jax.evaluate_first_stages(request("perfect", images=str(tmp_path)))
  with pytest.raises(ConfigError, match="give one or more"):
    request()
  with pytest.raises(ConfigError, match="rounds is 0"):
    request("a", rounds=0)
  with pytest.raises(ConfigError, match="biased upwards"):
    request("a", inception="weights.pth")
  with pytest.raises(ConfigError, match="biased upwards"):
    request("a", dino="dinov2")


@pytest.mark.parametrize(
  "flags, reason",
  [
    (["x", "--model", "a", "--paired"], "paired does not go with --model"),
    (["x", "y", "--model", "a"], "reference does not go with --model"),
    (["x", "--rounds=3"], "--rounds needs --model"),
    ([], "give a run or a folder of images, or autoencoders by --model"),
  ],
)
def test_flags_that_do_not_fit_are_named(flags, reason):
  with pytest.raises(CommandError, match=reason):
    command.main(flags)
