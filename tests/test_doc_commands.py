"""Commands of README.md and docs/ are run in order, on small models.

Those that need what is not here (published weights, a TPU, the hub, files of
the reader's) are parsed only, by `test_docs.py`.
"""

import re
import shutil

import documentation
import numpy as np
import pytest
import small_models
from documentation import blocks, commands, name_of
from PIL import Image

from ldm_jax.cli import main
from ldm_jax.data.glyphs.source import Glyphs

pytestmark = pytest.mark.slow

NOT_HERE = re.compile(
  r"FILE|weights-inception|\bRUN\b|MODEL|\bowner/|/shared/|\.\.\.|runs/X"
  r"|configs/[XY]|cat\.png|rows\.npy|topology|--tracker|my_denoiser|my_auto"
  r"|runs/(denoiser|mine --trust|style|vae)|sd/|--help-config|mesh\.fsdp"
  r"|real\.npz|small\.png|restored"
)
SMALL = {
  "photos_autoencoder": small_models.ONE
  | {
    "data.batch": "8",
    "data.held_out": "2",
    "data.augment.size": "32",
    "data.validation_augment.size": "32",
    "task.perceptual": "none",
    "task.discriminator": "none",
  },
  "my_photos": {
    "data.batch": "8",
    "data.held_out": "2",
    "data.augment.size": "32",
    "task.model.unet.channels": "16",
    "task.model.unet.multipliers": "1,",
    "task.model.unet.attention.depths": "1,",
    "task.model.unet.blocks": "1",
    "task.model.unet.attention.head_width": "8",
    "task.model.unet.groups": "4",
    "task.optimizer.muon": "none",
    "reports.previews_every": "0",
  },
}
SMALL["photos_autoencoder"].pop("data.validation.size")
SMALL["tiny_decoder"] = {
  name: value
  for name, value in SMALL["photos_autoencoder"].items()
  if not name.startswith("task")
}


def is_run(command):
  """Not those that need other files, or that end by a signal."""
  ends = command[0] not in ("serve", "watch", "push")
  return ends and not NOT_HERE.search(" ".join(command))


PAGES = [p for p in documentation.PAGES if any(map(is_run, commands(p)))]


def smaller(command):
  """The command with overrides that make training short."""
  flags = dict(
    re.fullmatch(r"--([\w.]+)=(.*)", word).groups()
    for word in command
    if re.fullmatch(r"--([\w.]+)=(.*)", word)
  )
  config = flags.get("config", "")
  name = config.rpartition("/")[2].removesuffix(".py")
  values = SMALL.get(name) or documentation.small(name)
  if command[0] == "train":
    shutil.rmtree(flags["workdir"], ignore_errors=True)
    values = values | {"steps": "2"}
    if name not in SMALL:
      values = values | {"task.optimizer.decay_steps": "200"}
  return [*command, *(f"--config.{key}={each}" for key, each in values.items())]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
  return small_models.write(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_run(page, models, tmp_path, monkeypatch):
  place = tmp_path / "work"
  shutil.copytree(models, place)
  (place / "configs").symlink_to(documentation.ROOT / "configs")
  (place / "docs").symlink_to(documentation.DOCS)
  monkeypatch.chdir(place)
  monkeypatch.setattr(Glyphs, "__len__", lambda self: min(self.size, 256))
  pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  Image.fromarray(pixels).save("image.png")
  Image.fromarray(pixels[:, :, 0] // 128 * 255).save("mask.png")
  for block in blocks(page, "python"):
    if block.title.endswith(".py"):
      (place / block.title).write_text(block.text)
  if page.name == "finetuning.md":
    shutil.copytree("path/to/model/vae", "vae-mine")
  for command in filter(is_run, commands(page)):
    if command[0] == "convert" and command[2] == "model.safetensors":
      (place / command[2]).unlink()
    if command[0] in ("train", "prepare"):
      command = smaller(command)
    if command[0] == "sample":
      command = [*command, "--steps", "4"]
    if "--model=model.safetensors" in command:  # of 512 pixels by default
      command = [*command, "-H", "16", "-W", "16"]
    assert main.main(command) == 0, command
