"""Stage two initialised from a model: fine-tuning, wider inputs, LoRA.

And every condition of the glyphs from config to report.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from untrained import untrained

import ldm_jax
from ldm_jax.cli import convert, report, retrieve, sample, train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.errors import WeightsError
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.pretrained.open_autoencoder import open_autoencoder
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.training.initialize_from import initial_params, widened

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
DATA = [
  "--config.data.batch=8",
  "--config.data.held_out=8",
  "--config.reports.every=1",
  "--config.reports.previews_every=0",
  "--config.checkpoints.every=100",
]
STAGE = [
  "--config.task.autoencoder.trunk.channels=8",
  "--config.task.autoencoder.trunk.multipliers=1,2",
  "--config.task.autoencoder.trunk.groups=4",
  *DATA,
]
NET = [
  # Muon takes longer to compile than everything else; see test_runtime.
  "--config.task.optimizer.muon=none",
  "--config.task.model.unet.channels=16",
  "--config.task.model.unet.groups=4",
  "--config.task.model.unet.multipliers=1,",
  "--config.task.model.unet.attention.depths=1,",
]
WORDS = [
  "--config.task.model.conditioners.0.encoder.width=16",
  "--config.task.model.conditioners.0.encoder.depth=1",
]
TWO = [*NET, *WORDS, *DATA]


def run(config, folder, steps, *flags):
  flags = [
    f"--config={CONFIGS / f'glyphs_{config}.py'}",
    f"--workdir={folder}",
    f"--config.steps={steps}",
    *flags,
  ]
  return train.main(flags)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Both stages with random parameters, as after training."""
  root = tmp_path_factory.mktemp("beginnings")
  untrained(CONFIGS / "glyphs_autoencoder.py", root / "one", STAGE)
  first = f"--config.first_stage={root / 'one'}"
  untrained(CONFIGS / "glyphs_text.py", root / "text", [first, *TWO])
  return root


def params_of(folder):
  opened = open_model(str(folder))
  return opened, jax.tree.map(
    np.asarray,
    {"unet": opened.params.unet, "conditioners": opened.params.conditioners},
  )


@pytest.mark.slow
def test_fine_tuning_begins_with_the_parameters_of_its_start(runs, tmp_path):
  """With a tiny learning rate all parameters equal those of the start."""
  start = f"--config.start={runs / 'text'}"
  still = "--config.task.optimizer.rate=1e-12"
  assert run("finetune", tmp_path / "same", 1, start, still, *TWO) == 0
  opened, found = params_of(tmp_path / "same")
  before, expected = params_of(runs / "text")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected
  )
  assert opened.params.latent_scale == before.params.latent_scale
  assert opened.tokenizer.encode(["red"]).tolist() == (
    before.tokenizer.encode(["red"]).tolist()
  )
  stages = (o.params.first_stage for o in (opened, before))
  jax.tree.map(np.testing.assert_array_equal, *stages)


@pytest.mark.slow
def test_fine_tuning_resumes_without_its_start(runs, tmp_path):
  start = f"--config.start={runs / 'text'}"
  folder = tmp_path / "tuned"
  assert run("finetune", folder, 2, start, *TWO) == 0
  assert run("finetune", folder, 3, *TWO) == 0
  assert Run.open(str(folder)).step == 3


@pytest.mark.slow
def test_a_lora_trains_its_factors_alone(runs, tmp_path, capsys):
  start = f"--config.start={runs / 'text'}"
  folder = tmp_path / "lora"
  assert run("lora", folder, 3, start, *TWO) == 0
  made = Run.open(str(folder))
  sharding = MeshShape().build()
  factors = made.trained(sharding)
  base = made.frozen(sharding).base
  _, expected = params_of(runs / "text")
  jax.tree.map(np.testing.assert_array_equal, base, expected)
  _, merged = params_of(folder)
  jax.tree.map(
    np.testing.assert_array_equal,
    merged["conditioners"],
    expected["conditioners"],
  )
  differ = jax.tree.map(
    lambda a, b: bool((a != b).any()), merged["unet"], expected["unet"]
  )
  assert any(jax.tree.leaves(differ)) and factors.keys() == {"unet"}
  # It samples, resumes, and is exported to files with the same matrices.
  out = tmp_path / "images"
  flags = [f"--model={folder}", "--prompt=a red circle", "--steps=2"]
  assert sample.main([*flags, f"--out={out}"]) == 0
  assert (out / "00000.png").exists()
  assert run("lora", folder, 4, *TWO) == 0
  file = tmp_path / "lora.safetensors"
  assert convert.main([str(folder), str(file), "--lora=kohya"]) == 0
  merged_file = tmp_path / "merged"
  flags = [f"--model={runs / 'text'}", f"--lora={file}", "--output=latent"]
  flags += ["--prompt=a red circle", "--steps=2"]
  assert sample.main([*flags, f"--out={merged_file}"]) == 0
  flags[0], flags[1] = f"--model={folder}", "--seed=0"
  assert sample.main([*flags, f"--out={tmp_path / 'own'}"]) == 0
  a, b = (np.load(p / "latents.npy") for p in (merged_file, tmp_path / "own"))
  np.testing.assert_allclose(a, b, atol=2e-4)
  with pytest.raises(CommandError, match="trained whole matrices"):
    convert.main([str(runs / "text"), str(tmp_path / "no"), "--lora=peft"])


@pytest.mark.slow
def test_a_widened_input_computes_the_same(runs):
  """Zeros for the new channels, before the coordinates (systems: SD's
  inpainting models begin so)."""
  opened, _ = params_of(runs / "text")
  unet = opened.model.unet
  kernel = opened.params.unet["params"]["conv_in"]["kernel"]
  wide = widened(kernel, kernel.shape[2] + 9, 4 * unet.octaves)
  rng = np.random.default_rng(0)
  xt = jnp.asarray(rng.standard_normal((2, 8, 8, 8)), jnp.float32)
  more = jnp.asarray(rng.standard_normal((2, 8, 8, 9)), jnp.float32)
  t = jnp.array([3.0, 800.0])
  context = jnp.asarray(rng.standard_normal((2, 5, 16)), jnp.float32)
  vector = jnp.asarray(rng.standard_normal((2, 16)), jnp.float32)
  shift = lambda x: x + 0.1
  params = jax.tree.map(shift, opened.params.unet)
  params["params"]["conv_in"]["kernel"] = kernel
  condition = Condition(context, vector=vector)
  before = unet.apply(params, xt, t, condition)
  params["params"]["conv_in"]["kernel"] = wide
  after = unet.apply(params, xt, t, condition.replace(concat=more))
  np.testing.assert_allclose(after, before, atol=1e-5)
  with pytest.raises(WeightsError, match="reads 20 channels"):
    widened(kernel, 3)


@pytest.mark.slow
def test_inpainting_begins_from_a_text_model(runs, tmp_path):
  start = f"--config.start={runs / 'text'}"
  folder = tmp_path / "filled"
  assert run("text_and_mask", folder, 2, start, *TWO) == 0
  image, mask = Glyphs()[0]["image"], np.zeros((32, 32), np.uint8)
  mask[8:20, 4:30] = 255
  Image.fromarray(image).save(tmp_path / "image.png")
  Image.fromarray(mask).save(tmp_path / "mask.png")
  out = tmp_path / "out"
  flags = [
    f"--image={tmp_path / 'image.png'}",
    f"--mask={tmp_path / 'mask.png'}",
  ]
  flags += [f"--model={folder}", "--prompt=a red circle", "--steps=2"]
  assert sample.main([*flags, f"--out={out}"]) == 0
  images = np.asarray(Image.open(out / "00000.png"))
  np.testing.assert_array_equal(images[mask == 0], image[mask == 0])
  assert (images[mask > 0] != image[mask > 0]).any()


@pytest.mark.slow
def test_another_network_is_refused(runs, tmp_path):
  start = f"--config.start={runs / 'text'}"
  wide = [f.replace("=16", "=24") if "channels" in f else f for f in TWO]
  with pytest.raises(
    CommandError, match="another one than the config's"
  ) as stop:
    run("finetune", tmp_path / "x", 1, start, *wide)
  assert stop.value.code == 5 and not (tmp_path / "x").exists()
  with pytest.raises(CommandError, match=r"--config\.start"):
    run("lora", tmp_path / "y", 1, *TWO)


@pytest.mark.slow
def test_stage_one_begins_from_the_first_stage_of_stage_two(runs, tmp_path):
  start = f"--config.start={runs / 'text'}"
  assert run("autoencoder", tmp_path / "one", 1, start, *STAGE) == 0
  # The rate of the first step is 0, and the average of equals is rounded.
  found, of_start = (
    open_autoencoder(str(folder)).variables
    for folder in (tmp_path / "one", runs / "text")
  )
  near = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  jax.tree.map(near, found, of_start)
  with pytest.raises(CommandError, match="is not that of start"):
    wide = [f.replace("channels=8", "channels=12") for f in STAGE]
    run("autoencoder", tmp_path / "wide", 1, start, *wide)
  assert not (tmp_path / "wide").exists()


@pytest.mark.slow
def test_conditioners_that_the_start_lacks_are_initialised(runs):
  opened, params = params_of(runs / "text")
  more = {"label": {"params": {"table": np.ones((3, 3))}}}
  fresh = params | {"conditioners": params["conditioners"] | more}
  task = Run.open(str(runs / "text")).experiment.task
  found = initial_params(task, fresh, opened)
  assert found["conditioners"]["label"] is more["label"]


@pytest.mark.slow
def test_a_text_model_learns_labels_too(runs, tmp_path):
  """What the start has is kept; the labels' table has its initial values."""
  task = Run.open(str(runs / "text")).experiment.task
  labels = ClassEmbedder(48, 16)
  model = dataclasses.replace(
    task.model, conditioners=(*task.model.conditioners, labels)
  )
  still = dataclasses.replace(task.optimizer, rate=1e-12)
  made = Run.open(str(runs / "text")).experiment
  made = dataclasses.replace(
    made,
    task=dataclasses.replace(task, model=model, optimizer=still),
    start=str(runs / "text"),
    first_stage="",
    steps=1,
  )
  ldm_jax.train(made, str(tmp_path / "both"))
  _, found = params_of(tmp_path / "both")
  _, expected = params_of(runs / "text")
  near = functools.partial(np.testing.assert_allclose, atol=1e-6)
  table = found["conditioners"].pop("label")["params"]
  jax.tree.map(near, found, expected)
  (rows,) = jax.tree.leaves(table)
  assert rows.shape[1] == 16 and 0.8 < np.std(rows) < 1.2  # N(0, 1)


# The slow tier: from config to report.


FLAGS_BY_CONDITION = {
  "class": ["--class_label=3"],
  "segmentation": ["--segmap={map}"],
  "segmentation_tokens": ["--segmap={map}"],
  "layout": ["--layout={boxes}"],
  "inpainting": ["--image={image}", "--mask={mask}"],
  "upscaling": ["--image={low}"],
  "unconditional": [],
  "velocity": ["--prompt=a red circle"],
  "neighbours": ["--neighbours={rows}"],
}
WANTED = {
  "class": "class_accuracy",
  "segmentation": "mean_iou",
  "segmentation_tokens": "mean_iou",
  "layout": "layout_iou",
  "inpainting": "changed_outside",
  "upscaling": "consistency",
  "unconditional": "valid_fraction",
  "velocity": "all",
  "neighbours": "agreement",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """What sample.py is given, by name."""
  root, item = tmp_path_factory.mktemp("given"), Glyphs()[5]
  Image.fromarray(item["image"]).save(root / "image.png")
  low = item["image"].reshape(8, 4, 8, 4, 3).mean((1, 3)).astype(np.uint8)
  Image.fromarray(low).save(root / "low.png")
  Image.fromarray(item["segmap"]).save(root / "map.png")
  mask = np.zeros((32, 32), np.uint8)
  mask[4:12, 4:12] = 255
  Image.fromarray(mask).save(root / "mask.png")
  box = {
    "class": int(item["boxes"][0, 4]),
    "box": item["boxes"][0, :4].tolist(),
  }
  (root / "boxes.json").write_text(json.dumps([box]))
  rows = np.random.default_rng(0).standard_normal((4, 2048))
  np.save(root / "rows.npy", rows.astype(np.float32))
  names = {"boxes": "boxes.json", "rows": "rows.npy"}
  names |= {n: f"{n}.png" for n in ("image", "low", "map", "mask")}
  return {name: root / file for name, file in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS_BY_CONDITION)
def test_every_condition_from_config_to_report(
  runs, files, tmp_path, monkeypatch, capsys, name
):
  monkeypatch.chdir(tmp_path)
  first = runs / "stage"
  if not first.exists():  # two halvings, as the configs' maps need
    stage = [f.replace("=1,2", "=1,1,1") for f in STAGE]
    untrained(CONFIGS / "glyphs_autoencoder.py", first, stage)
  flags = [f"--config.first_stage={first}", *NET, *DATA]
  if name == "velocity":
    flags += WORDS
  if name == "neighbours":
    (tmp_path / "runs").mkdir()
    search = ["--config=" + str(CONFIGS / "glyphs_neighbours.py")]
    monkeypatch.setattr(Glyphs, "__len__", lambda self: min(self.size, 64))
    asked = [f"--encoder={first}", "--out=runs/neighbours"]
    assert retrieve.main([*search, *asked]) == 0
  folder = tmp_path / "two"
  assert run(name, folder, 2, *flags) == 0
  out = tmp_path / "out"
  asked = [flag.format(**files) for flag in FLAGS_BY_CONDITION[name]]
  if name == "neighbours":
    rows = np.load("runs/neighbours/database.npy")[:4]
    np.save("rows.npy", rows)
    asked = ["--neighbours=rows.npy"]
  flags = [f"--model={folder}", "--steps=2", "--num=2", f"--out={out}"]
  assert sample.main([*flags, *asked]) == 0
  assert (out / "00001.png").exists()
  capsys.readouterr()
  flags = [f"--model={folder}", f"--out={tmp_path / 'r'}", "--num=8"]
  assert report.main([*flags, "--steps=2"]) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert WANTED[name] in found and "valid_fraction" in found
  if name == "inpainting":
    assert found["changed_outside"] == 0


@pytest.mark.slow
def test_a_classifier_trains_and_guides(runs, tmp_path, capsys):
  first = f"--config.first_stage={runs / 'one'}"
  small = ["channels=16", "groups=4", "multipliers=1,", "attention.depths=1,"]
  half = [f"--config.task.classifier.{flag}" for flag in small]
  classifier, plain = tmp_path / "classifier", tmp_path / "plain"
  assert run("classifier", classifier, 2, first, *half, *DATA) == 0
  path = CONFIGS / "glyphs_unconditional.py"
  untrained(path, plain, [first, *NET, *DATA])
  flags = [f"--model={plain}", "--steps=2", "--output=latent"]
  images = []
  for scale in (0, 1, 50):
    out = tmp_path / f"s{scale}"
    asked = [f"--classifier={classifier}", f"--classifier_scale={scale}"]
    asked += ["--class_label=3", f"--out={out}"]
    assert sample.main([*flags, *asked]) == 0
    images.append(np.load(out / "latents.npy"))
  assert sample.main([*flags, f"--out={tmp_path / 'bare'}"]) == 0
  np.testing.assert_allclose(
    images[0], np.load(tmp_path / "bare" / "latents.npy"), atol=1e-5
  )
  gaps = [np.abs(d - images[0]).max() for d in images[1:]]
  assert 0 < gaps[0] < gaps[1]
  for wrong, line in (
    ([f"--classifier={classifier}"], "go together"),
    ([f"--classifier={classifier}", "--class_label=48"], "must be 0 to 47"),
    ([f"--classifier={plain}", "--class_label=1"], "expected one of"),
  ):
    with pytest.raises(CommandError, match=line) as stop:
      sample.main([*flags, *wrong, f"--out={tmp_path / 'w'}"])
    assert stop.value.code == 2
