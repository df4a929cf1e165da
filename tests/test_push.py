"""Models are pushed to a hub, with a card, and opened from it by name."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from fake_hub import serving
from networks import autoencoder_shapes, random_params
from PIL import Image
from untrained import FOLDER, untrained

import ldm_jax
from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.pretrained.hub.fetch import local_adapter, local_path, local_run
from ldm_jax.pretrained.hub.model_card import ModelCard
from ldm_jax.pretrained.hub.push import PushRequest, push_to_hub
from ldm_jax.run import Run, frozen_shapes
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.program_cache import Structure, initialization
from ldm_jax.training.verify import verify
from ldm_jax.weights.safetensors_files import write_safetensors

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(monkeypatch, tmp_path):
  """A hub, which the library of this process uses."""
  from huggingface_hub import constants

  with serving() as made:
    template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield made


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The run of a small autoencoder at step 1, with previews."""
  root = tmp_path_factory.mktemp("run")
  for name in ("source/cat/a.png", "source/ball/b.png"):
    (root / name).parent.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(root / name)
  source = str(root / "source")
  (root / "config.py").write_text(FOLDER.format(source=source, good=source))
  folder = root / "ae"
  untrained(root / "config.py", folder, [])
  (folder / "previews").mkdir()
  Image.new("RGB", (8, 8)).save(folder / "previews" / "reconstructions_1.png")
  line = {"step": 1, "seconds": 2.0, "loss": 0.5, "validation_psnr": None}
  (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
  return str(folder)


def metadata(card):
  """The metadata before a card, as YAML reads it."""
  yaml = pytest.importorskip("yaml")
  return yaml.safe_load(card.split("---\n")[1])


def test_a_run_is_pushed_and_opened_by_its_name(hub, run):
  request = PushRequest(run, "owner/ae", "apache-2.0", "owner/icons")
  result = push_to_hub(request)
  assert result.url.endswith("/owner/ae")
  there = hub.files["owner/ae"]
  assert set(there) == set(result.files)
  card = there["README.md"].decode()
  found = metadata(card)
  assert found["license"] == "apache-2.0" and found["library_name"] == "ldm_jax"
  assert found["datasets"] == ["owner/icons"]
  for line in (
    "# ae",
    "![samples/reconstructions_1.png](samples/reconstructions_1.png)",
    "| loss | 0.5 |",
    "2 classes: ball, cat.",
    "| task.autoencoder.trunk.channels | 8 |",
  ):
    assert line in card, line
  assert "validation" not in card.partition("## Config")[0]
  assert ldm_jax.inspect("owner/ae") == ldm_jax.inspect(run)
  copy, sharding = local_run("owner/ae"), MeshShape().build()
  assert copy == local_path("owner/ae") and local_run(run) == run
  same = np.testing.assert_array_equal
  jax.tree.map(
    same, *(Run.open(each).trained(sharding) for each in (run, copy))
  )


def test_another_push_replaces_checkpoints_and_samples(hub, run):
  hub.files["owner/ae"] = {
    "checkpoints/9/old": b"", "samples/old.png": b"", "LICENSE": b"",
  }  # fmt: skip
  result = push_to_hub(PushRequest(run, "owner/ae"))
  assert set(hub.files["owner/ae"]) == {*result.files, "LICENSE"}


def adapter(folder):
  path = pathlib.Path(folder, "style.safetensors")
  write_safetensors(str(path), {"w": np.ones(2, np.float32)})
  return path


def test_the_command_pushes_an_adapter_which_is_found_by_name(hub, tmp_path):
  file = adapter(tmp_path)
  arguments = [str(file), "owner/style", "--base_model=owner/model"]
  done = subprocess.run(
    [sys.executable, "-m", "ldm_jax", "push", *arguments],
    env=os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_none"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == f"{hub.url}/owner/style"
  card = hub.files["owner/style"]["README.md"].decode()
  assert "--model=owner/model --lora=owner/style" in card
  for name in ("owner/style", "owner/style/style.safetensors"):
    copy = local_adapter(name)
    assert pathlib.Path(copy).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
  "name, files, line",
  [
    ("owner/two", ("a.safetensors", "b.safetensors"), "has 2 .safetensors"),
    ("owner/none", ("a.txt",), "has 0 .safetensors"),
    ("owner/two/c.safetensors", ("a.safetensors",), "has no file 'c"),
    ("owner/absent", (), "cannot be fetched from the hub"),
  ],
)
def test_an_adapter_that_is_not_there_is_one_line(hub, name, files, line):
  if files:
    hub.files["/".join(name.split("/")[:2])] = dict.fromkeys(files, b"")
  with pytest.raises(ConfigError, match=re.escape(line)):
    local_adapter(name)


def test_paths_of_adapters_are_not_looked_up(hub, tmp_path):
  for path in (adapter(tmp_path), "style.safetensors", "loras/a.safetensors"):
    assert local_adapter(path) == str(path)
  assert hub.requests == []


def test_the_card_of_a_folder_is_kept(hub, tmp_path):
  vae = Autoencoder(ConvStack(8, (1, 2), 1, groups=4), 3)
  folder = tmp_path / "vae"
  params = {"params": random_params(autoencoder_shapes(vae))}
  ldm_jax.save_pretrained(vae, params, str(folder))
  push_to_hub(PushRequest(str(folder), "owner/vae", "mit"))
  card = hub.files["owner/vae"]["README.md"].decode()
  assert metadata(card)["license"] == "mit" and "AutoencoderKL" in card
  (folder / "README.md").write_text("own")
  push_to_hub(PushRequest(str(folder), "owner/vae"))
  assert hub.files["owner/vae"]["README.md"] == b"own"
  with pytest.raises(ConfigError, match=r"has a README\.md"):
    push_to_hub(PushRequest(str(folder), "owner/vae", "mit"))


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"repository": "model"}, "repository must be owner/model"),
    ({"license": "My Licence"}, "license must be an identifier"),
    ({"samples": ("no.png",)}, "samples must be image files"),
    ({"base_model": "x"}, "base_model must be owner/model"),
  ],
)
def test_wrong_requests_are_one_line(fields, line):
  with pytest.raises(ConfigError, match=line):
    PushRequest(**({"source": "x", "repository": "a/b"} | fields))


def test_a_refusal_of_the_hub_is_one_line(hub, tmp_path, monkeypatch):
  from huggingface_hub import constants

  monkeypatch.setattr(constants, "ENDPOINT", hub.url + "/absent")
  with pytest.raises(ConfigError, match=r"is not pushed to a/b: .*hf auth"):
    push_to_hub(PushRequest(str(adapter(tmp_path)), "a/b"))


def test_texts_in_a_card_are_read_as_themselves():
  card = ModelCard(
    "a/b",
    {"kind": "run", "classes": ["x|y", "*z*"], "prediction": "v"},
    data='"quoted": [text]',
    settings={"data.source.path": "a|b\nc"},
  ).text()
  assert "x\\|y, \\*z\\*" in card and "| data.source.path | a\\|b c |" in card
  assert metadata(card)["pipeline_tag"] == "unconditional-image-generation"
  assert "datasets" not in metadata(card) and "has not stated it" in card


def test_the_optimizer_is_uploaded_where_it_is_asked_for(hub, run):
  """Otherwise the parameters alone, from which training cannot be resumed."""
  for name, include in (("owner/whole", True), ("owner/ae", False)):
    push_to_hub(PushRequest(run, name, include_optimizer=include))
  whole, small = (local_run(name) for name in ("owner/whole", "owner/ae"))
  size = lambda name: sum(
    len(data) for file, data in hub.files[name].items() if "/state/" in file
  )
  assert size("owner/ae") < size("owner/whole") / 2
  assert verify(small).is_whole and verify(whole).is_whole
  states = [
    Checkpoints(f"{folder}/checkpoints") for folder in (run, whole, small)
  ]
  shapes = state_shapes(Run.open(run))
  sharding = MeshShape().build().tree_shardings(shapes)
  first, second = (s.restore_newest(shapes, sharding)[1] for s in states[:2])
  jax.tree.map(np.testing.assert_array_equal, first, second)
  with pytest.raises(
    ConfigError, match=r"without the state of .*config\.start"
  ):
    states[2].restore_newest(shapes, sharding)


def state_shapes(run):
  """Of the state that training saves."""
  task, batch = run.experiment.task, Structure.of(run.batch)
  frozen = Structure.of(frozen_shapes(task, batch))
  return initialization(task, batch, frozen).shapes


def test_files_have_no_optimizer(hub, tmp_path):
  request = PushRequest(str(adapter(tmp_path)), "a/b", include_optimizer=True)
  with pytest.raises(ConfigError, match="include_optimizer is of runs"):
    push_to_hub(request)
