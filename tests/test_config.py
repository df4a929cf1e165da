"""Configs: every file builds, every field can be set, mistakes are one line."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from ldm_jax import config, config_json
from ldm_jax.cli import train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.config import override
from ldm_jax.errors import ConfigError
from ldm_jax.fields import checks

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
  path
  for path in (ROOT / "configs").rglob("*.py")
  if "def get_config()" in path.read_text()
)
TEXT = ROOT / "configs" / "glyphs_text.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_equals_its_json(path):
  experiment = config.load(str(path))
  tree = json.loads(json.dumps(config_json.to_json(experiment)))
  again = config.from_json(tree)
  assert again == experiment and not config_json.differences(again, experiment)
  assert '"""' in path.read_text()[:10]


def test_the_quickstart_trains_shipped_configs_to_the_end_of_their_decay():
  text = (ROOT / "Makefile").read_text()
  found = re.findall(r"--config=(configs/\S+)", text)
  assert found
  for path in found:
    experiment = config.load(str(ROOT / path))
    steps = experiment.task.optimizer.decay_steps, experiment.checkpoints.every
    assert steps == (experiment.steps, experiment.steps)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_leaf_can_be_set_to_itself(path):
  """Walks all fields: the printed value of a field is accepted by its flag."""
  experiment = config.load(str(path))

  def walk(node, prefix):
    for field in checks.fields(node):
      value, name = getattr(node, field.name), prefix + field.name
      if dataclasses.is_dataclass(value):
        yield from walk(value, name + ".")
      elif isinstance(value, tuple) and any(
        map(dataclasses.is_dataclass, value)
      ):
        for i, item in enumerate(value):
          yield from walk(item, f"{name}.{i}.")
      elif value != ():
        yield name, str(value)

  texts = dict(walk(experiment, ""))
  assert len(texts) > 40
  assert override(experiment, texts) == experiment


def test_fields_that_must_agree_change_together():
  experiment = override(
    config.load(str(TEXT)),
    {
      "task.model.unet.multipliers": "1,2,4",
      "task.model.unet.attention.depths": "(0,1,1)",
      "task.model.prediction": "v",
      "task.loss.prediction": "v",
      "task.model.unet.dtype": "bfloat16",
      "data.tokenizer": "none",
      "task.model.conditioners.0.drop_rate": "0.2",
    },
  )
  assert experiment.task.model.unet.multipliers == (1, 2, 4)
  assert experiment.task.model.conditioners[0].drop_rate == 0.2
  assert experiment.data.tokenizer is None


WRONG = {
  "task.optimiser.rate=1": "did you mean 'optimizer'",
  "task.optimizer.rate=abc": "valid number, got 'abc'",
  "task.optimizer.rate=-1": "needs above 0, got '-1'",
  "steps=1e3x": "valid integer",
  "steps=none": "needs int",
  "seed=1.5": "valid integer",
  "task.model.unet.multipliers=1,x": "valid integer, got '1,x'",
  "task.model.unet.multipliers=1": "one depth per level",
  "task.model.unet.dtype=bfloat61": "number format",
  "task.model.unet=3": "set one of its fields",
  "task.model.unet.attention.heads=none": "exactly one of heads",
  "task.model.prediction=v": "set loss.prediction and model.prediction",
  "task.model.prediction=eps": "eps gives no x0",
  "task.loss.norm=l3": "'l1' or 'l2'",
  "task.model.unet.remat=1": "'off', 'dots' or 'full'",
  "data.augment=yes": "needs Augment",
  "data.tokenizer.length.x=3": "without fields",
  "task.model.conditioners.7.width=3": "number below 1",
  "task.model.unet.__class__=x": "unknown field",
  "task.model.schedule.start=2": "start <= end",
  "mesh.fsdp=3": "mesh",
  "data.batch=7": "does not divide",
  "first_stage=": "--config.first_stage",
  "first_stage=nowhere": "no run folder",
}


@pytest.mark.parametrize("flag", WRONG)
def test_a_mistake_is_one_line_and_nothing_is_written(flag, tmp_path):
  folder = tmp_path / "run"
  with pytest.raises(CommandError) as stop:
    train.main([f"--config={TEXT}", f"--workdir={folder}", f"--config.{flag}"])
  assert WRONG[flag] in str(stop.value)
  assert stop.value.code == 2 and "\n" not in str(stop.value)
  assert not folder.exists()


@pytest.mark.parametrize(
  "text, message",
  [
    ("x = 1", "no function get_config"),
    ("def get_config(): return 3", "must return an ldm_jax.config.Experiment"),
    ("def get_config(:", "invalid syntax"),
    ("import nosuchthing", "No module named 'nosuchthing'"),
  ],
)
def test_a_wrong_config_file_is_one_line(text, message, tmp_path):
  path = tmp_path / "config.py"
  path.write_text(text)
  with pytest.raises(ConfigError, match=message):
    config.load(str(path))


def test_json_instantiates_only_known_classes():
  tree = config_json.to_json(config.load(str(TEXT)))
  tree["task"]["class"] = "subprocess.Popen"
  with pytest.raises(ConfigError, match="is none of"):
    config.from_json(tree)
  tree = config_json.to_json(config.load(str(TEXT)))
  tree["task"]["ema_decey"] = 0.5
  with pytest.raises(ConfigError, match="did you mean 'ema_decay'"):
    config.from_json(tree)
  tree = config_json.to_json(config.load(str(TEXT)))
  tree["steps"] = "many"
  with pytest.raises(ConfigError, match="valid integer"):
    config.from_json(tree)


# In a shell: one line, no traceback, and the exit code.
SHELL = [
  (["train.py"], "required"),
  (["train.py", "--config=no.py", "--workdir=w"], "not found: no.py"),
  (["train.py", "--config=no.py", "--wokdir=w"], "workdir"),
  (["sample.py", "--model=nowhere"], "no run, file or folder"),
]


@pytest.mark.parametrize("arguments, message", SHELL, ids=lambda a: a[0][:6])
def test_a_shell_gets_one_line_and_exit_code_2(arguments, message, tmp_path):
  script, *rest = arguments
  done = subprocess.run(
    [sys.executable, ROOT / script, *rest],
    capture_output=True,
    text=True,
    cwd=tmp_path,
  )
  assert done.returncode == 2
  assert message in done.stderr and done.stderr.count("\n") == 1
  assert not list(tmp_path.iterdir()) and jax.device_count() == 8


def test_every_field_is_listed_with_its_meaning(capsys):
  flags = ["--config=glyphs_text", "--help-config", "--config.steps=7"]
  assert train.main(flags) == 0
  out = capsys.readouterr().out
  assert (
    "--config.steps=7  (int, 1 or more)  [ldm_jax/config.py]\n    updates"
    in out
  )
  assert (
    "--config.task.model.conditioners.0.drop_rate=0.1  (float, from 0 to 1)"
    in out
  )
  assert "--config.task.lora=none  (LoRA | None)" in out


@pytest.mark.parametrize(
  "flag, hint",
  [
    ("--steps=3", "did you mean --config.steps?"),
    ("--batch=4", "did you mean --config.data.batch?"),
    ("--rate=1", "did you mean --config.task.optimizer.rate?"),
    ("--wokdir=x", "did you mean --workdir?"),
  ],
)
def test_a_flag_that_is_a_field_hints_at_it(flag, hint):
  with pytest.raises(CommandError) as stop:
    train.main(["--config=glyphs_text", "--workdir=x", flag])
  assert hint in str(stop.value)
