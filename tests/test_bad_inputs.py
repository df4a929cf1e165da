"""Bad inputs: the right exit code, one line, no traceback, nothing written.

Rows are numbered T (train), S (sample) and W (weights).
"""

import contextlib
import inspect
import json
import os
import pathlib
import shutil
import signal
import struct
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_training import CONFIGS, ONE, TWO
from torch_files import Name, Reduced, tensor, write
from untrained import FOLDER, untrained

from ldm_jax.cli import convert, evaluate, info, sample, train
from ldm_jax.cli.exit_codes import exit_status
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.folder_lock import folder_lock
from ldm_jax.sampling import latent_codec
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.safetensors_files import write_safetensors

SECONDS = 10


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """Runs, images and broken files."""
  root = tmp_path_factory.mktemp("place")
  nine = "--config.steps=9"
  untrained(CONFIGS / "glyphs_autoencoder.py", root / "one", [*ONE, nine])
  first = f"--config.first_stage={root / 'one'}"
  untrained(CONFIGS / "glyphs_text.py", root / "two", [*TWO, first])
  small = [flag for flag in TWO if "encoder" not in flag]
  small += [first, "--config.task.model.conditioners.0.width=16"]
  untrained(CONFIGS / "glyphs_class.py", root / "class", small)
  bare = [flag for flag in small if "width" not in flag]
  for name, flag in (
    ("segmentation", "--config.task.model.conditioners.0.halvings=1"),
    ("upscaling", "--config.data.transforms.0.factor=2"),
  ):
    untrained(CONFIGS / f"glyphs_{name}.py", root / name, [*bare, flag])
  write_images(root)
  weights(root)
  with folder_lock(str(root / "locked")):
    yield root


def write_images(root):
  """Good and bad images, each bad one in a folder of its own."""
  rng = np.random.default_rng(0)
  random_image = lambda: Image.fromarray(
    rng.integers(0, 256, (24, 24, 3), np.uint8)
  )
  for name in ("good", "few", "captions", "maps", "half", "boxes"):
    (root / name).mkdir()
    for number in range(3 if name == "few" else 40):
      random_image().save(root / name / f"{number:02d}.png")
  (root / "captions" / "03.txt").write_bytes(b"a red \xff\xfe circle")
  for number in range(40):
    Image.new("L", (24, 20)).save(root / "maps" / f"{number:02d}.map.png")
    (root / "boxes" / f"{number:02d}.boxes.json").write_text(
      '[{"class": 1, "box": [0.9, 0.1, 0.2, 0.5]}]'
    )
  Image.new("L", (24, 24)).save(root / "half" / "00.map.png")
  np.save(root / "huge.npy", np.full((1, 16, 16, 8), 3e38, np.float32))
  (root / "empty").mkdir()
  for name in ("corrupt", "over"):
    shutil.copytree(root / "good", root / name)
  for path in (root / "corrupt").iterdir():
    path.write_bytes(path.read_bytes()[:60])
  (root / "over" / "07.png").write_bytes(b"<html>404</html>")
  (root / "tiny").mkdir()
  for number in range(40):
    Image.new("RGB", (1, 1), (number, 0, 0)).save(
      root / "tiny" / f"{number:02d}.png"
    )
  random_image().save(root / "image.png")
  random_image().convert("CMYK").save(root / "cmyk.jpg")
  deep = rng.integers(0, 2**16, (24, 24)).astype(np.uint16)
  Image.fromarray(deep).save(root / "deep.png")
  exif = Image.Exif()
  exif[0x0112] = 6
  random_image().save(root / "exif.jpg", exif=exif)
  random_image().save(root / "still.gif")
  random_image().save(
    root / "moves.gif", save_all=True, append_images=[random_image()]
  )
  (root / "bom.txt").write_bytes("\ufeffa red circle\r\n".encode())
  (root / "million.txt").write_text("a red circle\n" * 10**6)
  Image.new("L", (24, 24)).save(root / "black.png")
  (root / "html.png").write_bytes(b"<html>404</html>")
  Image.new("1", (9000, 9000)).save(root / "bomb.png")
  (root / "binary.txt").write_bytes(bytes(range(256)))
  (root / "nothing.txt").write_text("\n\n")
  (root / "boxes.json").write_text('[{"class": 1, "box": [0.9, 0, 0.1, 1]}]')
  (root / "nan.json").write_text('[{"class": 1, "box": [NaN, 0, 0.1, 1]}]')
  (root / "a_file").write_text("here")
  np.savez(root / "nan.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
  (root / "bare").mkdir()
  (root / "bare" / "config.json").write_text(
    (root / "two" / "config.json").read_text()
  )
  shutil.copytree(root / "one", root / "damaged")
  shutil.copytree(root / "one", root / "locked")
  shutil.rmtree(root / "damaged" / "checkpoints" / "1" / "digests")
  evil = {"experiment": {"class": "os.system", "command": "touch sentinel"}}
  (root / "evil").mkdir()
  (root / "evil" / "config.json").write_text(json.dumps(evil | {"batch": {}}))


def forged(header, data=b"", length=None):
  """A safetensors file with this header."""
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def weights(root):
  """Files that are not weights, or the wrong weights."""
  bad = root / "weights"
  bad.mkdir()
  sentinel = root / "sentinel"
  code = Reduced(Name("posix", "system"), (f"touch {sentinel}",))
  whole = {"a": tensor(np.arange(6, dtype=np.float32))}
  for layout in ("zip", "legacy"):
    write(layout, bad / f"evil_{layout}.ckpt", {"a": code})
    path = bad / f"cut_{layout}.ckpt"
    write(layout, path, whole)
    path.write_bytes(path.read_bytes()[:-40])
  write("zip", bad / "torch.safetensors", whole)
  lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
  (bad / "lfs.safetensors").write_text(lfs)
  (bad / "html.safetensors").write_text("<!DOCTYPE html><html>403</html>")
  one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
  twice = b'{"a":%b,"a":%b}' % ((json.dumps(one).encode(),) * 2)
  for name, content in {
    "long": forged({"a": one}, b"1234", 2**63),
    "no_json": forged(b"{not json", b"1234"),
    "twice": forged(twice, b"1234"),
    "dtype": forged({"a": one | {"dtype": "F99"}}, b"1234"),
    "trailing": forged({"a": one}, b"12345678"),
    "overlap": forged({"a": one, "b": one}, b"1234"),
    "empty": b"",
  }.items():
    (bad / f"{name}.safetensors").write_bytes(content)
  write_safetensors(
    str(bad / "lora.safetensors"),
    {"lora_unet_x.lora_down.weight": np.ones((2, 4), np.float32)},
  )
  write_safetensors(
    str(bad / "unknown.safetensors"), {"x": np.ones(3, np.float32)}
  )
  (bad / "model.gguf").write_bytes(b"GGUF" + bytes(60))
  (bad / "folder").mkdir()
  (bad / "folder" / "readme.md").write_text("nothing here")
  index = "diffusion_pytorch_model.safetensors.index.json"
  for name, target in {
    "missing": "shard-1.safetensors",
    "traversal": "../../secret.safetensors",
  }.items():
    (bad / name).mkdir()
    config = {"_class_name": "UNet2DConditionModel"}
    (bad / name / "config.json").write_text(json.dumps(config))
    index_json = {"metadata": {}, "weight_map": {"conv_in.weight": target}}
    (bad / name / index).write_text(json.dumps(index_json))
  os.mkfifo(bad / "fifo.safetensors")
  (bad / "loop.safetensors").symlink_to(bad / "loop.safetensors")


def glyphs(*flags, stage="autoencoder"):
  config = CONFIGS / f"glyphs_{stage}.py"
  return [f"--config={config}", "--workdir={out}", *flags]


def text(*flags):
  return glyphs("--config.first_stage={root}/one", *flags, stage="text")


def folder(source, *flags):
  return [f"--config=FOLDER:{source}", "--workdir={out}", *flags]


def two(*flags):
  return ["--model={root}/two", "--steps=2", *flags]


def again(run, flags, *more):
  """A run that is resumed."""
  return [
    f"--config={CONFIGS / 'glyphs_autoencoder.py'}",
    f"--workdir={{root}}/{run}",
    *flags,
    *more,
  ]


EMOJI = "\U0001f496"
STEPS = ["--config.steps=9"]
TRAIN = {
  "T1 no config": (
    ["--config=no.py", "--workdir={out}"],
    2,
    "config file not found: no.py",
  ),
  "T2 syntax": (["--config={root}/binary.txt", "--workdir={out}"], 2, "null"),
  "T3 code in JSON": (again("evil", []), 2, "is none of"),
  "T4 no number": (glyphs("--config.task.optimizer.rate=abc"), 2, "'abc'"),
  "T5 unknown": (
    glyphs("--config.task.optimizer.ratte=1"),
    2,
    "did you mean 'rate'",
  ),
  "T6 nan": (glyphs("--config.task.optimizer.rate=nan"), 2, "rate"),
  "T6 inf": (glyphs("--config.task.optimizer.rate=inf"), 2, "rate"),
  "T6 negative": (glyphs("--config.task.optimizer.rate=-1"), 2, "above 0"),
  "T7 zero": (glyphs("--config.data.batch=0"), 2, "batch"),
  "T7 negative": (glyphs("--config.data.batch=-8"), 2, "batch"),
  "T7 huge": (glyphs("--config.data.batch=2000000000"), 2, "GiB"),
  "T8 indivisible": (glyphs("--config.data.batch=6"), 2, "try 8"),
  "T9 width": (text("--config.task.model.unet.channels=-32"), 2, "channels"),
  "T9 heads": (text("--config.task.model.unet.attention.heads=7"), 2, "heads"),
  "T10 dunder": (glyphs("--config.task.__class__=x"), 2, "unknown field"),
  "T11 no folder": (folder("nope"), 2, "does not exist"),
  "T11 bucket": (folder("gs://bucket/x"), 2, "read from buckets"),
  "T21 bucket": (
    [*glyphs()[:1], "--workdir=gs://bucket/run"],
    2,
    "mount the bucket",
  ),
  "T12 empty": (folder("empty"), 4, "0 images among"),
  "T13 corrupt": (folder("corrupt"), 4, "of 40 images are bad"),
  "T14 over": (folder("over"), 4, "1 of 40 images are bad"),
  "T15 under": (
    folder("over", "--config.data.max_bad_fraction=0.1"),
    0,
    "replaced",
  ),
  "T16 boxes": (folder("boxes"), 4, "increasing within 0 to 1"),
  "T17 captions": (folder("captions"), 4, "is not UTF-8"),
  "T18 maps": (folder("maps"), 4, "of one size"),
  "T18 half": (folder("half"), 4, "is the first that is missing"),
  "T19 tiny": (folder("tiny"), 0, ""),
  "T20 few": (folder("few"), 0, ""),
  "T21 a file": ([*glyphs()[:1], "--workdir={root}/a_file"], 2, "a_file"),
  "T21 nowhere": ([*glyphs()[:1], "--workdir=/proc/x"], 6, "/proc/x"),
  "T22 width": (
    again("one", ONE, *STEPS, "--config.task.autoencoder.latent_channels=3"),
    2,
    "holds another experiment",
  ),
  "T23 batch": (
    again("one", ONE, *STEPS, "--config.data.batch=16"),
    2,
    "config.data.batch",
  ),
  "T24 locked": (again("locked", ONE, *STEPS), 2, "is written by process"),
  "T25 damaged": (again("damaged", ONE, *STEPS), 5, "none of 1 checkpoints"),
  "T26 stage": (
    glyphs("--config.first_stage={root}/two", stage="text"),
    2,
    "must be one of",
  ),
  "T28 mesh": (glyphs("--config.mesh.data=3", "--config.mesh.fsdp=2"), 2, "8"),
  "T29 finished": (
    again("one", ONE, "--config.steps=1"),
    0,
    "already run its 1",
  ),
}
SAMPLE = {
  "S1 no checkpoint": (["--model={root}/bare"], 2, "no checkpoint"),
  "S2 stage one": (["--model={root}/one"], 2, "cannot sample"),
  "S3 zero": (two("--steps=0"), 2, "between 1 and 1000"),
  "S3 negative": (two("--steps=-5"), 2, "between 1 and 1000"),
  "S3 many": (two("--steps=1000000000"), 2, "between 1 and 1000"),
  "S3 half": (two("--steps=2.5"), 2, "invalid int value: '2.5'"),
  "S4 odd": (two("-H", "33"), 2, "try 32"),
  "S5 huge": (two("-H", "65536", "-W", "65536"), 2, "GiB"),
  "S6 none": (two("-H", "0"), 2, "multiple of 2"),
  "S6 negative": (two("-W", "-8"), 2, "multiple of 2"),
  "S6 long": (two("-H", "8", "-W", "99999998"), 2, "GiB"),
  "S7 batch": (two("--batch=1000000", "--num=1000000"), 2, "GiB"),
  "S8 nan": (two("--cfg-scale=nan"), 2, "guidance must be"),
  "S8 large": (two("--guidance=1e9"), 2, "guidance must be"),
  "S8 inf": (two("--scale=-inf"), 2, "guidance must be"),
  "S9 negative": (two("--seed=-2"), 2, "seed must be"),
  "S9 large": (two(f"--seed={2**70}"), 2, "seed must be"),
  "S9 word": (two("--seed=abc"), 2, "invalid int value"),
  "S10 sampler": (two("--sampler=foo"), 2, "foo"),
  "S11 class": (["--model={root}/class", "--class_label=48"], 2, "0 to 47"),
  "S12 word": (["--model={root}/class", "--class_label=cat"], 2, "'cat'"),
  "S13 long": (two("--prompt=" + 50_000 * "word "), 2, "250000 characters"),
  "S14 emoji": (two("--prompt=" + 5000 * EMOJI), 0, "png"),
  "S15 control": (two("--prompt=a\x00\x1b[2J red circle"), 0, "2 control"),
  "S16 surrogate": (two("--prompt=a \ud800"), 2, "not Unicode text"),
  "S17 empty": (two("--prompt="), 0, "has no effect"),
  "S17 unread": (
    two("--negative_prompt=a cat", "--guidance=1"),
    0,
    "no effect at guidance 1",
  ),
  "S18 path": (two("--prompt=../../etc/passwd"), 0, "00000.png"),
  "S19 binary": (two("--prompts_file={root}/binary.txt"), 2, "utf-8"),
  "S19 mark": (two("--prompts_file={root}/bom.txt"), 0, "png"),
  "S19 million": (two("--prompts_file={root}/million.txt"), 2, "1000000"),
  "S19 overflow": (
    two("--initial_latents={root}/huge.npy", "--output=latent"),
    3,
    "1 of 1 latents hold NaN or infinity",
  ),
  "S19 nothing": (two("--prompts_file={root}/nothing.txt"), 2, "no prompt"),
  "S20 html": (two("--image={root}/html.png"), 2, "not_an_image"),
  "S20 inks": (two("--image={root}/cmyk.jpg"), 0, "png"),
  "S20 deep": (two("--image={root}/deep.png"), 0, "png"),
  "S20 turned": (two("--image={root}/exif.jpg"), 0, "png"),
  "S20 still": (two("--image={root}/still.gif"), 0, "png"),
  "S20 moves": (two("--image={root}/moves.gif"), 2, "animated"),
  "S20 bomb": (two("--image={root}/bomb.png"), 2, "too_large"),
  "S21 black": (
    two("--image={root}/image.png", "--mask={root}/black.png"),
    2,
    "black everywhere",
  ),
  "S22 low": (
    two("--image={root}/image.png", "--strength=-0.1"),
    2,
    "strength",
  ),
  "S22 high": (
    two("--image={root}/image.png", "--strength=1.5"),
    2,
    "strength",
  ),
  "S23 a file": (two("--out={root}/a_file"), 6, "a_file"),
  "S23 full": (two("--out=/dev/full"), 6, "/dev/full"),
  "S24 no map": (["--model={root}/segmentation"], 2, "--segmap"),
  "S24 box": (two("--layout={root}/boxes.json"), 2, "increasing within 0 to 1"),
  "S24 nan": (two("--layout={root}/nan.json"), 2, "must hold a list"),
  "S25 no image": (["--model={root}/upscaling"], 2, "give it an image"),
  "S26 eta": (two("--sampler=euler", "--eta=1"), 2, "has no eta"),
}
WEIGHTS = {
  "W1 code in a zip": ("evil_zip.ckpt", "posix.system"),
  "W1 code of old": ("evil_legacy.ckpt", "posix.system"),
  "W2 cut zip": ("cut_zip.ckpt", "cut_zip"),
  "W2 cut old": ("cut_legacy.ckpt", "cut_legacy"),
  "W3 pointer": ("lfs.safetensors", "git lfs pull"),
  "W4 page": ("html.safetensors", "html"),
  "W5 length": ("long.safetensors", "header"),
  "W5 no JSON": ("no_json.safetensors", "JSON"),
  "W5 twice": ("twice.safetensors", "twice"),
  "W5 format": ("dtype.safetensors", "F99"),
  "W5 trailing": ("trailing.safetensors", "trailing"),
  "W5 overlap": ("overlap.safetensors", "overlap"),
  "W5 empty": ("empty.safetensors", "empty"),
  "W6 by content": ("torch.safetensors", ""),
  "W8 adapter": ("lora.safetensors", "LoRA"),
  "W8 unknown": ("unknown.safetensors", ""),
  "W8 folder": ("folder", "folder"),
  "W8 shard": ("missing", "shard-1.safetensors"),
  "W10 traversal": ("traversal", "secret.safetensors"),
  "W10 fifo": ("fifo.safetensors", "fifo"),
  "W10 loop": ("loop.safetensors", "loop"),
  "W13 gguf": ("model.gguf", "GGUF"),
}


EVALUATE = {
  "T30 empty": (["{root}/empty", "{root}/good"], 4, "0 images"),
  "T30 few": (
    ["{root}/good", "{root}/good", "--inception={root}/a_file"],
    2,
    "--allow_small",
  ),
  "T30 other": (["{root}/few", "{root}/good"], 2, "3 samples but 40 images"),
  "T30 nothing": (["{root}/good"], 2, "to be compared with"),
  "T30 network": (
    [
      *("{root}/good", "{root}/good", "--allow_small"),
      "--inception={root}/a_file",
    ],
    5,
    "a_file",
  ),
  "T30 statistics": (["{root}/good", "{root}/nan.npz"], 2, "finite numbers"),
  "T30 worlds": (
    ["{root}/good", "--write_statistics={out}", "--allow_small"],
    2,
    "--resize=legacy or --resize=clean",
  ),
  "T30 run": (["{root}/two", "--out={out}", "--num=0"], 2, "num must be 1"),
  "T30 sampler": (
    ["{root}/two", "--out={out}", "--sampler=euler", "--eta=1"],
    2,
    "has no eta",
  ),
  "T30 damaged": (["{root}/damaged", "--out={out}", "--num=2"], 5, "digests"),
}


@contextlib.contextmanager
def ended(seconds):
  """Ends a block that hangs, which then fails."""

  def end(*_):
    pytest.fail(f"it hangs, after {seconds} s")

  before = signal.signal(signal.SIGALRM, end)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def outcome(command, arguments, capsys):
  """(exit code, output, seconds of CPU time)."""
  capsys.readouterr()
  start = time.process_time()  # independent of other load
  with ended(60):
    code = exit_status(command, arguments)
  seconds = time.process_time() - start
  output = capsys.readouterr()
  return code, output.err + output.out, seconds


CONTENTS = {}  # of files that have not changed since they were read


def everything(root):
  """All files, and what is in them."""
  files = {}
  for folder, _, names in os.walk(root):
    for name in names:
      path = os.path.join(folder, name)
      if name == "lock" or not os.path.isfile(path):
        continue
      status = os.stat(path)
      state = path, status.st_ino, status.st_size, status.st_mtime_ns
      if state not in CONTENTS:
        CONTENTS[state] = pathlib.Path(path).read_bytes()
      files[path] = CONTENTS[state]
  return files


def check(root, command, arguments, code, text, capsys):
  """One row of the table."""
  before = everything(root)
  found, output, seconds = outcome(command, arguments, capsys)
  assert found == code, output
  assert text in output and "Traceback" not in output
  assert "\x1b" not in output and "\x00" not in output
  errors = [line for line in output.splitlines() if line.startswith("error: ")]
  assert len(errors) == bool(code)
  if code:
    assert seconds < SECONDS
    assert everything(root) == before
  assert not (root / "sentinel").exists()


def filled(flags, root, out):
  """Flags with their placeholders filled in; FOLDER: becomes a config."""
  found = []
  for flag in flags:
    if "FOLDER:" in flag:
      name = flag.partition("FOLDER:")[2]
      source = name if "://" in name else root / name
      path = out.parent / "config.py"
      good = str(root / "good")
      path.write_text(FOLDER.format(source=str(source), good=good))
      flag = f"--config={path}"
    found.append(flag.replace("{root}", str(root)).replace("{out}", str(out)))
  return found


@pytest.mark.parametrize("row", TRAIN)
def test_training(place, tmp_path, capsys, row):
  flags, code, text = TRAIN[row]
  out = tmp_path / "out"
  check(place, train.main, filled(flags, place, out), code, text, capsys)
  # Errors found during training leave a run that can be resumed.
  may = code == 0 or row in ("T14 over", "T17 captions")
  assert out.exists() == (may and "{out}" in str(flags))


@pytest.mark.parametrize("row", SAMPLE)
def test_sampling(place, tmp_path, capsys, row):
  flags, code, text = SAMPLE[row]
  out = tmp_path / "out"
  flags = filled(flags, place, out)
  if not any(flag.startswith("--out=") for flag in flags):
    flags.append(f"--out={out}")
  check(place, sample.main, flags, code, text, capsys)
  if code == 0:
    names = sorted(path.name for path in out.iterdir())
    assert names == ["00000.png", "grid.png"]
  elif code == 3:  # found while it generates
    assert not list(out.iterdir())
  else:
    assert not out.exists()


@pytest.mark.parametrize("row", EVALUATE)
def test_measuring(place, tmp_path, capsys, row):
  flags, code, text = EVALUATE[row]
  out = tmp_path / "out"
  flags = filled(flags, place, out)
  check(place, evaluate.main, flags, code, text, capsys)
  assert not out.exists()


@pytest.mark.parametrize("row", WEIGHTS)
def test_weights(place, tmp_path, capsys, row):
  name, text = WEIGHTS[row]
  path = str(place / "weights" / name)
  check(place, info.main, [path], 5, text, capsys)
  out = tmp_path / "out"
  check(place, convert.main, [path, str(out)], 5, text, capsys)
  check(place, sample.main, [f"--model={path}"], 5, text, capsys)
  assert not out.exists()


def test_weights_that_are_not_finite(place, tmp_path, capsys):
  """W9, and sampling from a run whose first stage holds NaN."""
  vae = tmp_path / "vae"
  assert convert.main([str(place / "one"), str(vae)]) == 0
  path = vae / "diffusion_pytorch_model.safetensors"
  tensors = dict(read_tensors(str(path)))
  name = "decoder.conv_out.weight"
  tensors[name] = np.array(tensors[name])
  tensors[name].flat[:3] = np.nan, np.inf, -np.inf
  write_safetensors(str(path), tensors)
  out = tmp_path / "out"
  text = f"{name} has 3 values of"
  check(place, convert.main, [str(vae), str(out)], 3, text, capsys)
  assert not out.exists()


def test_constant_latents_have_no_scale(place, tmp_path, capsys):
  """T27."""
  run = tmp_path / "one"
  shutil.copytree(place / "one", run)
  opened = Run.open(str(run))
  sharding = opened.experiment.mesh.build()
  params = jax.tree.map(jnp.zeros_like, opened.trained(sharding))
  shutil.rmtree(run / "checkpoints")
  task = opened.experiment.task
  state = jax.eval_shape(
    task.init, jax.random.key(0), opened.batch, task.frozen_shapes(opened.batch)
  )
  state = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)
  state = state.replace(params=state.params | {"autoencoder": params})
  with contextlib.closing(Checkpoints(str(run / "checkpoints"))) as kept:
    kept.save(1, state)
  flags = [*glyphs(stage="text"), f"--config.first_stage={run}", *TWO]
  flags = filled(flags, place, tmp_path / "out")
  check(place, train.main, flags, 3, "the latents' variance is 0", capsys)
  assert not (tmp_path / "out").exists()


def test_images_that_are_not_finite(place, tmp_path, capsys, monkeypatch):
  whole = LatentDiffusion.decode
  spoiled = lambda *arguments: whole(*arguments).at[0, 3, 3].set(jnp.nan)
  monkeypatch.setattr(LatentDiffusion, "decode", spoiled)
  # Not the functions that other tests have compiled.
  own = inspect.unwrap(latent_codec._programs)
  monkeypatch.setattr(latent_codec, "_programs", own)
  flags = [f"--model={place / 'two'}", "--steps=2", f"--out={tmp_path / 'x'}"]
  text = "hold NaN or infinity"
  check(place, sample.main, flags, 3, text, capsys)
