"""`ldm-jax evaluate` of runs, folders and statistics, and its errors."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_inception import path as weights  # noqa: F401
from test_inception import variables  # noqa: F401
from untrained import untrained

from ldm_jax.cli import evaluate
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.evaluation.metrics.psnr import psnr
from ldm_jax.evaluation.metrics.ssim import ssim
from ldm_jax.pixels import to_float

CONFIG = """
from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack, PixelSpace
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.training.denoiser import DenoiserTask

STAGE = Autoencoder(trunk=ConvStack(channels=8, multipliers=(1, 1), blocks=1,
                                groups=4))
ONE = AutoencoderTask(autoencoder=STAGE, perceptual=None, discriminator=None,
                   disc_weight=0.0)
def denoising(channels, **more):
  return DenoiserTask(model=LatentDiffusion(
    unet=UNet(out_channels=channels, channels=8, multipliers=(1,), blocks=1,
              groups=4, attention=AttentionPlan(depths=(1,), heads=2)),
    conditioners=(ClassEmbedder(classes=48, width=8),), **more,
  ))

TWO = denoising(4)
PIXELS = denoising(3, first_stage=PixelSpace())

def get_config():
  return Experiment(
    task={task},
    data=Data(source=Glyphs(level=0, split="train"),
              validation=Glyphs(level=0, split="validation", size=40),
              batch=8, held_out=8),
    steps=1,
    reports=Reports(previews_every=0),
  )
"""


def run(folder, name, *flags):
  """An untrained run: "one", "two" or "pixels"."""
  path = folder / f"{name}.py"
  path.write_text(CONFIG.format(task=name.upper()))
  untrained(path, folder / name, flags)
  return folder / name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  return run(tmp_path_factory.mktemp("one"), "one")


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
  folder = tmp_path_factory.mktemp("two")
  return run(folder, "two", f"--config.first_stage={one}")


def evaluated(capsys, *flags):
  assert evaluate.main([str(flag) for flag in flags]) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def error_of(*flags):
  with pytest.raises(CommandError) as stop:
    evaluate.main([str(flag) for flag in flags])
  return stop.value.code, str(stop.value)


def pixels(folder):
  return np.stack(
    [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
  )


@pytest.mark.slow
def test_samples_of_a_run_resume_and_depend_on_seed_and_index_alone(
  two, tmp_path, capsys
):
  flags = [two, "--steps=2", "--train=30", "--seed=3"]
  whole = evaluated(capsys, *flags, f"--out={tmp_path / 'a'}", "--num=10")
  assert whole["n"] == whole["n_against"] == 10
  assert whole["what"] == "samples" and whole["steps"] == 2
  assert whole["fid"] == whole["clip_score"] == "unavailable"
  assert whole["memorisation_ratio"] > 1  # untrained: noise
  kept = json.loads((tmp_path / "a" / "evaluation.json").read_text())
  assert kept == whole
  for name in ("best", "worst", "nearest"):
    sheet = np.asarray(Image.open(tmp_path / "a" / f"{name}.png"))
    assert sheet.std() > 10
  # Stopped after three, it resumes.
  folder = tmp_path / "b" / "samples"
  evaluated(capsys, *flags, f"--out={tmp_path / 'b'}", "--num=3")
  first = (folder / "000000.png").stat().st_mtime_ns
  again = evaluated(capsys, *flags, f"--out={tmp_path / 'b'}", "--num=10")
  assert (folder / "000000.png").stat().st_mtime_ns == first
  difference = np.abs(
    pixels(folder).astype(int) - pixels(tmp_path / "a" / "samples")
  )
  assert difference.max() <= 1
  assert again["n"] == 10
  other = [*flags[:-1], "--seed=4", "--num=10"]
  assert error_of(*other, f"--out={tmp_path / 'b'}") == (
    2,
    f"{tmp_path / 'b'} holds images of another seed; choose another out folder "
    "(--out)",
  )


@pytest.mark.slow
def test_a_run_in_pixel_space_is_evaluated(tmp_path, capsys):
  folder = run(tmp_path, "pixels")
  found = evaluated(
    capsys, folder, f"--out={tmp_path / 'out'}", "--num=4", "--steps=2"
  )
  assert found["n"] == 4 and found["what"] == "samples"
  made = pixels(tmp_path / "out" / "samples")
  assert made.shape == (4, 32, 32, 3) and made.std() > 10


def test_reconstructions_are_compared_with_their_originals(
  one, tmp_path, capsys
):
  out = tmp_path / "out"
  found = evaluated(capsys, one, f"--out={out}", "--num=6")
  assert (
    found["what"] == "reconstructions" and "memorisation_ratio" not in found
  )
  from ldm_jax.data.glyphs.source import Glyphs

  source = Glyphs(level=0, split="validation", size=40)
  real = np.stack([source[i]["image"] for i in range(6)])
  made = pixels(out / "samples")
  levels = [np.asarray(to_float(jax.numpy.asarray(x))) for x in (made, real)]
  np.testing.assert_allclose(found["psnr"], psnr(*levels).mean(), rtol=1e-5)
  similarity = ssim(jax.numpy.asarray(made), jax.numpy.asarray(real))
  np.testing.assert_allclose(found["ssim"], similarity.mean(), rtol=1e-5)


def write(folder, images, names=None):
  folder.mkdir()
  for i, image in enumerate(images):
    name = names[i] if names else f"{i:03d}"
    Image.fromarray(image).save(folder / f"{name}.png")
  return folder


def test_images_of_two_folders_are_paired_by_name(tmp_path, capsys):
  rng = np.random.default_rng(0)
  one = rng.integers(0, 256, (5, 20, 24, 3), np.uint8)
  two = np.clip(one.astype(int) + rng.integers(-9, 10, one.shape), 0, 255)
  write(tmp_path / "a", one)
  Image.fromarray(one[0]).save(
    tmp_path / "a" / "grid.png"
  )  # a grid of samples is left out
  write(tmp_path / "b", two.astype(np.uint8))
  found = evaluated(capsys, tmp_path / "a", tmp_path / "b", "--paired")
  assert found["n"] == 5 and 30 < found["psnr"] < 36 and 0.9 < found["ssim"] < 1
  assert found["lpips"] == "unavailable"
  same = evaluated(capsys, tmp_path / "a", tmp_path / "a", "--paired")
  assert same["psnr"] == "inf" and abs(same["ssim"] - 1) < 1e-6
  write(tmp_path / "c", one[:4])
  code, line = error_of(tmp_path / "a", tmp_path / "c")
  assert code == 2 and "5 samples but 4 images" in line and "--num=4" in line
  write(tmp_path / "d", one, "abcde")
  code, line = error_of(tmp_path / "a", tmp_path / "d", "--paired")
  assert code == 2 and "the same names" in line
  write(tmp_path / "e", one[:, :10])
  code, line = error_of(tmp_path / "a", tmp_path / "e", "--paired")
  assert code == 2 and "(20, 24) and (10, 24)" in line


def test_what_cannot_be_measured_is_an_error_or_unavailable(
  one, tmp_path, capsys
):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 8, 8, 3), np.uint8)
  folder = write(tmp_path / "a", images)
  absent = "--inception=nowhere.pth", "--allow_small"
  assert "expected torch-fidelity's" in error_of(folder, folder, *absent)[1]
  assert "go together" in error_of(folder, folder, "--lpips_trunk=x.pth")[1]
  assert "to be compared with" in error_of(folder)[1]
  assert "give out (--out)" in error_of(one)[1]
  assert (
    "must be 1 to 40" in error_of(one, f"--out={tmp_path / 'b'}", "--num=41")[1]
  )
  np.savez(tmp_path / "x.npz", a=np.zeros(3))
  assert "expected mu" in error_of(folder, tmp_path / "x.npz")[1]
  # Images of 8 x 8 are too small for a window of 11.
  assert evaluate.main([str(folder), str(folder), "--paired"]) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert found["ssim"] == "unavailable" and found["psnr"] == "inf"
  (folder / "bad.png").write_bytes(b"nothing")
  code, line = error_of(folder, folder, "--paired")
  assert code == 4 and "bad.png" in line
  assert not (tmp_path / "b").exists()


def adms(path, rng):
  """Random statistics in ADM's format, which has no resizing mode."""
  mu, sigma = rng.standard_normal(2048), np.eye(2048)
  np.savez(path, mu=mu, sigma=sigma)
  return path


def test_statistics_without_a_resizing_mode_need_the_flag(
  weights,  # noqa: F811
  tmp_path,
):
  rng = np.random.default_rng(0)
  folder = write(tmp_path / "a", rng.integers(0, 256, (3, 8, 8, 3), np.uint8))
  kept = adms(tmp_path / "adm.npz", rng)
  given = [f"--inception={weights}", "--allow_small"]
  code, line = error_of(folder, kept, *given, f"--out={tmp_path / 'out'}")
  assert code == 2 and "give --resize=legacy" in line
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_against_statistics_has_a_memorisation_ratio(
  two,
  weights,  # noqa: F811
  tmp_path,
  capsys,
):
  kept = adms(tmp_path / "adm.npz", np.random.default_rng(0))
  flags = [f"--inception={weights}", "--allow_small", "--resize=legacy"]
  flags += ["--num=4", "--steps=2", "--train=6", f"--out={tmp_path / 'out'}"]
  found = evaluated(capsys, two, kept, *flags)
  assert found["fid_legacy"] > 0 and "sfid_legacy" not in found
  assert found["memorisation_ratio"] > 0
  assert (tmp_path / "out" / "nearest.png").exists()
  out = tmp_path / "folder"
  again = evaluated(
    capsys, tmp_path / "out" / "samples", kept, *flags[:3], f"--out={out}"
  )
  assert again["fid_legacy"] == found["fid_legacy"]
  assert (out / "evaluation.json").exists()


@pytest.mark.slow
def test_distances_of_folders_and_of_their_statistics_agree(
  weights,  # noqa: F811
  tmp_path,
  capsys,
):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (8, 20, 24, 3), np.uint8)
  one, two = write(tmp_path / "a", images), write(tmp_path / "b", images // 2)
  given = [f"--inception={weights}", "--allow_small"]
  found = evaluated(capsys, one, two, *given, "--resize=clean")
  assert found["fid_clean"] > 0 and found["sfid_clean"] > 0
  assert found["is_clean"] >= 1 and found["kid_clean"] > 0
  assert 0 <= found["recall_clean"] <= 1 and "fid_legacy" not in found
  kept = tmp_path / "b.npz"
  flags = [*given, "--resize=clean", f"--write_statistics={kept}"]
  evaluated(capsys, two, *flags)
  again = evaluated(capsys, one, kept, *given, "--resize=clean")
  np.testing.assert_allclose(again["fid_clean"], found["fid_clean"], rtol=1e-6)
  assert again["n"] == again["n_against"] == 8
  code, line = error_of(one, kept, *given, "--resize=legacy")
  assert code == 2 and "--resize=clean" in line


@pytest.mark.slow
def test_reconstructions_have_an_rfid(
  one,
  weights,  # noqa: F811
  tmp_path,
  capsys,
):
  flags = [f"--inception={weights}", f"--out={tmp_path / 'out'}", "--num=5"]
  flags.append("--allow_small")
  found = evaluated(capsys, one, *flags, "--resize=legacy")
  assert found["rfid_legacy"] > 0 and "fid_legacy" not in found
  assert found["resize"] == "legacy" and found["n"] == 5
