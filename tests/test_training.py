"""Both stages through the commands, small: resume, move, sample."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from untrained import untrained

from ldm_jax.cli import report, sample, train, verify
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing import read_checkpoints
from ldm_jax.runtime.monitoring import metric_writer

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
DATA = [
  "--config.data.batch=8",
  "--config.data.held_out=8",
  "--config.data.source.size=40",
  "--config.reports.every=1",
  "--config.reports.previews=4",
  "--config.reports.previews_every=100",
]
ONE = [
  "--config.task.autoencoder.trunk.channels=8",
  "--config.task.autoencoder.trunk.multipliers=1,2",
  "--config.task.autoencoder.trunk.groups=4",
  *DATA,
]
TWO = [
  "--config.task.model.unet.channels=16",
  "--config.task.model.unet.groups=4",
  "--config.task.model.unet.multipliers=1,",
  "--config.task.model.unet.attention.depths=1,",
  "--config.task.model.conditioners.0.encoder.width=16",
  "--config.task.model.conditioners.0.encoder.depth=1",
  # Muon takes longer to compile than everything else here; see test_runtime.
  "--config.task.optimizer.muon=none",
  "--config.task.preview_steps=2",
  *DATA,
]

NO_PREVIEWS = "--config.reports.previews_every=0"


def run(config, folder, steps, flags, every=2):
  return train.main(
    [
      f"--config={CONFIGS / config}",
      f"--workdir={folder}",
      f"--config.steps={steps}",
      f"--config.checkpoints.every={every}",
      *flags,
    ]
  )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Each stage once uninterrupted and once in two halves."""
  root = tmp_path_factory.mktemp("runs")
  name = "glyphs_autoencoder.py"
  assert run(name, root / "one", 4, ONE) == 0
  assert run(name, root / "one_halves", 2, [*ONE, NO_PREVIEWS]) == 0
  assert run(name, root / "one_halves", 4, [*ONE, NO_PREVIEWS]) == 0
  first = [*TWO, f"--config.first_stage={root / 'one'}"]
  name, bare = "glyphs_text.py", [*TWO, NO_PREVIEWS]
  # A compiled initialisation is that of the first stage.
  for folder, flags in (("two", first), ("two_halves", [*first, NO_PREVIEWS])):
    flags = [*flags, "--config.steps=2", "--config.checkpoints.every=2"]
    untrained(CONFIGS / name, root / folder, flags, step=0)
  assert run(name, root / "two", 4, TWO) == 0
  assert run(name, root / "two_halves", 2, bare) == 0
  assert run(name, root / "two_halves", 4, bare) == 0
  return root


def state_of(folder):
  """Every array of the newest checkpoint, as Orbax finds it."""
  import orbax.checkpoint as ocp

  step = read_checkpoints.latest_step(str(folder / "checkpoints"))
  path = folder / "checkpoints" / str(step) / "state"
  with ocp.PyTreeCheckpointer() as reader:
    return step, reader.restore(path)


@pytest.mark.slow
def test_a_killed_start_is_repeated(runs, tmp_path):
  """Killed after frozen/ was written, and before config.json was."""
  begun, straight = tmp_path / "run", tmp_path / "straight"
  shutil.copytree(runs / "two" / "frozen", begun / "frozen")
  (begun / "frozen.orbax-checkpoint-tmp-1").mkdir()
  flags = [*TWO, NO_PREVIEWS, f"--config.first_stage={runs / 'one'}"]
  for folder in (begun, straight):
    assert run("glyphs_text.py", folder, 2, flags) == 0
  again, whole = (state_of(folder) for folder in (begun, straight))
  jax.tree.map(np.testing.assert_array_equal, again, whole)
  assert sorted(path.name for path in begun.glob("frozen*")) == ["frozen"]


@pytest.mark.parametrize("stage", ["one", "two"])
def test_two_halves_are_the_whole_bit_for_bit(runs, stage):
  whole, halves = (state_of(runs / f"{stage}{s}") for s in ("", "_halves"))
  assert whole[0] == halves[0] == 4
  assert len(jax.tree.leaves(whole[1])) > 100
  jax.tree.map(np.testing.assert_array_equal, whole[1], halves[1])
  found_ = [
    metric_writer.read_metrics(str(runs / f"{stage}{s}"))
    for s in ("", "_halves")
  ]
  clocks = {"seconds", "images_per_second"}
  bare = [
    [{k: v for k, v in line.items() if k not in clocks} for line in log]
    for log in found_
  ]
  losses = [
    {line["step"]: line["loss"] for line in log if "loss" in line}
    for log in bare
  ]
  assert losses[0] == losses[1] and sorted(losses[0]) == [1, 2, 3, 4]
  assert bare[0][-1] == bare[1][-1]


def test_a_finished_run_is_left_as_it_is(runs, capsys):
  before = state_of(runs / "one")
  assert run("glyphs_autoencoder.py", runs / "one", 4, ONE) == 0
  assert "has already run its 4 steps" in capsys.readouterr().err
  jax.tree.map(np.testing.assert_array_equal, before, state_of(runs / "one"))


def test_a_damaged_step_is_reported_and_the_step_before_is_used(
  runs, tmp_path, capsys
):
  run = tmp_path / "two"
  shutil.copytree(runs / "two", run)
  assert verify.main([str(run)]) == 0
  found_ = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [line.get("step") for line in found_] == [2, 4, None]
  assert all(line["whole"] and len(line["digest"]) == 64 for line in found_)
  (large, *_) = sorted(
    (run / "checkpoints" / "4" / "state" / "d").iterdir(),
    key=lambda path: -path.stat().st_size,
  )
  raw = bytearray(large.read_bytes())
  for place in range(100, len(raw), 1000):  # every block of it
    raw[place] ^= 1
  large.write_bytes(raw)
  assert verify.main([str(run)]) == 5
  found_ = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [line["whole"] for line in found_] == [True, False, True]
  flags = ["--prompt=a red circle", "--steps=2", f"--out={tmp_path / 'out'}"]
  assert sample.main([f"--model={run}", *flags]) == 0
  assert "warning: step 4" in capsys.readouterr().err
  shutil.rmtree(run / "checkpoints" / "2")
  with pytest.raises(
    CommandError, match="none of 1 checkpoints is intact"
  ) as stop:
    sample.main([f"--model={run}", *flags])
  assert stop.value.code == 5


def test_another_experiment_is_refused(runs):
  flags = [*ONE, "--config.task.optimizer.rate=0.5"]
  with pytest.raises(CommandError, match=r"task\.optimizer\.rate") as stop:
    run("glyphs_autoencoder.py", runs / "one", 4, flags)
  assert stop.value.code == 2


def test_a_run_folder_holds_previews_digests_and_events(runs):
  folder = runs / "two"
  assert (folder / "previews" / "samples_0000004.png").exists()
  assert Image.open(folder / "previews" / "samples_0000004.png").width > 100
  opened = Run.open(str(folder))
  digest = opened.experiment.first_stage_digest
  assert len(digest) == 64
  stage_one = Run.open(str(runs / "one"))
  first = opened.experiment.task.model.first_stage
  assert first == stage_one.experiment.task.autoencoder
  from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
  )

  events = EventAccumulator(str(folder / "tensorboard"))
  events.Reload()
  found_ = [
    line["loss"]
    for line in metric_writer.read_metrics(str(folder))
    if "loss" in line
  ]
  seen = [event.value for event in events.Scalars("train/loss")]
  np.testing.assert_allclose(seen, found_, rtol=1e-6)


def generate(folder, out, *flags):
  return sample.main([f"--model={folder}", f"--out={out}", "--steps=3", *flags])


def pixels(path):
  return np.asarray(Image.open(path)).astype(int)


def test_a_moved_run_samples_and_an_image_depends_on_seed_and_index(
  runs, tmp_path, capsys
):
  moved = tmp_path / "elsewhere"
  shutil.copytree(runs / "two", moved)
  (runs / "one").rename(runs / "hidden")
  try:
    options = ["--prompt", "a small red circle", "--num=3", "--seed=5"]
    assert generate(moved, tmp_path / "a", *options, "--batch=8") == 0
    assert generate(moved, tmp_path / "b", *options, "--batch=1") == 0
  finally:
    (runs / "hidden").rename(runs / "one")
  paths = capsys.readouterr().out.split()
  assert [os.path.basename(p) for p in paths[:4]] == [
    "00000.png",
    "00001.png",
    "00002.png",
    "grid.png",
  ]
  for i in range(3):
    a, b = (pixels(tmp_path / d / f"{i:05d}.png") for d in "ab")
    assert a.shape == (32, 32, 3) and np.abs(a - b).max() <= 1
  assert np.abs(pixels(paths[0]) - pixels(paths[1])).max() > 1
  found_ = json.loads(Image.open(paths[1]).text["ldm_jax"])
  assert found_["prompt"] == "a small red circle" and found_["index"] == 1
  assert found_["steps"] == 3 and found_["seed"] == 5

  assert (
    generate(moved, tmp_path / "a", *options, "--guidance=1", "--no_metadata")
    == 0
  )
  paths = capsys.readouterr().out.split()
  assert os.path.basename(paths[0]) == "00003.png"
  assert os.path.basename(paths[-1]) == "grid_00003.png"
  assert "ldm_jax" not in Image.open(paths[0]).text
  assert (tmp_path / "a" / "grid.png").exists()


def test_a_report_has_scores_and_images(runs, tmp_path, capsys):
  flags = [f"--model={runs / 'two'}", f"--out={tmp_path}"]
  assert report.main([*flags, "--num=8", "--steps=2"]) == 0
  found_ = json.loads(capsys.readouterr().out.splitlines()[-1])
  names = ("colour", "background", "size", "position", "texture", "shape")
  assert all(0 <= found_[name] <= 1 for name in (*names, "all"))
  assert found_["psnr"] > 0 and found_["seconds_stage_two"] > 0
  page = (tmp_path / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 2 and "<svg" in page


def test_unknown_words_are_reported(runs, tmp_path, capsys):
  long = "a small red zebra " + "circle " * 40
  assert generate(runs / "two", tmp_path, "--prompt", long) == 0
  err = capsys.readouterr().err
  assert "has no token for zebra" in err and "beyond the length" in err


def test_images_are_inpainted_and_outpainted(runs, tmp_path, capsys):
  noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3))
  image, mask = noise.astype(np.uint8), np.zeros((32, 32), np.uint8)
  mask[8:20, 4:28] = 255
  Image.fromarray(image).save(tmp_path / "image.png")
  Image.fromarray(mask).save(tmp_path / "mask.png")
  given = [f"--image={tmp_path / 'image.png'}", "--prompt=a red circle"]
  masked = [f"--mask={tmp_path / 'mask.png'}", "--sampler=DPM++ 2M Karras"]
  assert generate(runs / "two", tmp_path / "a", *given, *masked) == 0
  found = pixels(tmp_path / "a" / "00000.png")
  np.testing.assert_array_equal(found[mask == 0], image[mask == 0])
  assert np.abs(found - image)[mask > 0].max() > 1
  found_ = Image.open(tmp_path / "a" / "00000.png").text["parameters"]
  assert "Sampler: DPM++ 2M, Schedule type: Karras" in found_
  assert "Denoising strength: 1" in found_
  more = ["--outpaint=4,0,4,8", "--tiled=16", "--window=32", "--guidance=1"]
  assert generate(runs / "two", tmp_path / "b", *given, *more) == 0
  found = pixels(tmp_path / "b" / "00000.png")
  assert found.shape == (40, 40, 3)
  np.testing.assert_array_equal(found[:32, 4:36], image)
  found_ = json.loads(Image.open(tmp_path / "b" / "00000.png").text["ldm_jax"])
  assert found_["outpaint"] == [4, 0, 4, 8] and found_["tile"] == 16
  assert "tiles decoded differ" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_noise_of_an_image_is_found_and_sampled_from(
  runs, tmp_path, capsys
):
  options = ["--prompt=a red circle", "--guidance=1", "--steps=100"]
  assert generate(runs / "two", tmp_path / "a", *options) == 0
  image = f"--image={tmp_path / 'a' / '00000.png'}"
  back = ["--invert", image, "--output=latent"]
  assert generate(runs / "two", tmp_path / "b", *options, *back) == 0
  noise = np.load(tmp_path / "b" / "latents.npy")
  assert noise.shape[0] == 1 and 0.3 < noise.std() < 3
  again = [f"--initial_latents={tmp_path / 'b' / 'latents.npy'}"]
  assert generate(runs / "two", tmp_path / "c", *options, *again) == 0
  # The error depends on the model; test_sampling tests the method.
  assert pixels(tmp_path / "c" / "00000.png").shape == (32, 32, 3)


def test_many_prompts_and_interpolations(runs, tmp_path, capsys):
  (tmp_path / "prompts.txt").write_text("a red circle\n\n a blue square \n")
  flags = [f"--prompts_file={tmp_path / 'prompts.txt'}", "--num=2"]
  assert generate(runs / "two", tmp_path / "a", *flags, "--emphasis") == 0
  paths = capsys.readouterr().out.split()
  found_ = [json.loads(Image.open(path).text["ldm_jax"]) for path in paths[:4]]
  prompts = ["a red circle", "a red circle", "a blue square", "a blue square"]
  assert [each["prompt"] for each in found_] == prompts
  flags = ["--prompt=a red circle", "--prompt=a blue square"]
  assert generate(runs / "two", tmp_path / "b", *flags, "--interpolate=3") == 0
  paths = capsys.readouterr().out.split()
  assert len(paths) == 4
  found_ = json.loads(Image.open(paths[1]).text["ldm_jax"])
  assert found_["prompt"] == ["a red circle", "a blue square"]
  # The same prompts from a file, and the noise from torch.
  (tmp_path / "two.txt").write_text("a red circle\na blue square\n")
  flags = [f"--prompts_file={tmp_path / 'two.txt'}", "--interpolate=3"]
  assert generate(runs / "two", tmp_path / "c", *flags) == 0
  for i in range(3):
    a, b = (pixels(tmp_path / d / f"{i:05d}.png") for d in "bc")
    np.testing.assert_array_equal(a, b)
  flags = ["--prompt=a", "--interpolate=3", "--rng=torch"]
  assert generate(runs / "two", tmp_path / "d", *flags) == 0


def test_an_interruption_keeps_what_is_finished(
  runs, tmp_path, capsys, monkeypatch
):
  from ldm_jax.sampling import SamplingEngine

  whole = SamplingEngine.generate_group

  def interrupted(self, *arguments):
    yield next(whole(self, *arguments))
    raise KeyboardInterrupt

  monkeypatch.setattr(SamplingEngine, "generate_group", interrupted)
  with pytest.raises(KeyboardInterrupt):
    generate(runs / "two", tmp_path, "--prompt=a", "--num=9", "--batch=1")
  names = sorted(os.listdir(tmp_path))
  assert names[0] == "00000.png" and names[-1] == "grid.png"


WRONG = {
  "no such run": (["--model=nowhere"], "no run, file or folder"),
  "stage one": (["--model={one}"], "cannot sample"),
  "steps": (["--model={two}", "--steps=0"], "between 1 and 1000"),
  "many steps": (["--model={two}", "--steps=1001"], "between 1 and 1000"),
  "size": (["--model={two}", "-H", "33"], "must be a multiple of 2"),
  "class": (
    ["--model={two}", "--class_label=1"],
    "is not conditioned on classes",
  ),
  "number": (["--model={two}", "--num=0"], "num must be 1 or more"),
  "flag": (["--model={two}", "--guidence=3"], "did you mean --guidance"),
  "type": (["--model={two}", "--steps=ten"], "invalid int value: 'ten'"),
  "sampler": (["--model={two}", "--sampler=dimm"], "did you mean ddim"),
  "grid": (["--model={two}", "--grid=karas"], "did you mean karras"),
  "eta": (["--model={two}", "--sampler=euler", "--eta=1"], "has no eta"),
  "times": (["--model={two}", "--times=1,2"], "must decrease"),
  "words for times": (
    ["--model={two}", "--times=a"],
    "numbers separated by commas",
  ),
  "rescale": (["--model={two}", "--guidance_rescale=2"], "must be 0 to 1"),
  "interval": (
    ["--model={two}", "--guidance_interval", "0.8", "0.2"],
    "must increase",
  ),
  "mask alone": (["--model={two}", "--mask=x.png"], "need an image"),
  "strength alone": (["--model={two}", "--strength=0.5"], "is of an image"),
  "no image": (["--model={two}", "--image=x.png"], "image x.png: unreadable"),
  "no prompts": (["--model={two}", "--prompts_file=x"], "prompts_file 'x'"),
  "noise level": (["--model={two}", "--noise_level=5"], "is not an upscaler"),
  "inversion": (["--model={two}", "--invert"], "invert needs an image"),
  "num of a way": (
    ["--model={two}", "--interpolate=3", "--num=2"],
    "leave num out",
  ),
  "one frame": (["--model={two}", "--interpolate=1"], "N >= 2"),
  "variation": (["--model={two}", "--variation=2"], "must be 0 to 1"),
  "window": (["--model={two}", "--window=0"], "window must be"),
  "no control": (["--model={two}", "--controlnet={one}"], "ControlNetModel"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_samples_are_one_line_and_exit_2(runs, tmp_path, case):
  flags, message = WRONG[case]
  where = {stage: runs / stage for stage in ("one", "two")}
  flags = [flag.format(**where) for flag in flags]
  with pytest.raises(CommandError, match=message) as stop:
    sample.main([*flags, f"--out={tmp_path / 'out'}"])
  assert stop.value.code == 2 and "\n" not in str(stop.value)
  assert not (tmp_path / "out").exists()
