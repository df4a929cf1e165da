"""An exported sampler generates the model's images, without this package."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import t5_files
from jax import export as jax_export
from PIL import Image
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures
from test_sampling import CONFIG, class_model, generated, sides

from ldm_jax.cli import export, sample
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.prompt_weighting import parse_prompt_weights
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling import GenerationInputs, SamplingEngine
from ldm_jax.sampling.export import exported_runner
from ldm_jax.sampling.export.exported_program import PLATFORMS, export_sampler
from ldm_jax.sampling.initial_latents import image_root

PROMPT = "a red fox in the snow"

# The exported folder's own program, in a process without ldm_jax.
ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.modules["flax"] = sys.modules["ldm_jax"] = None
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
  "is_inside", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_any_number_of_images_equals_the_engines(is_inside):
  module, params = class_model()
  one = MeshShape().build(jax.devices()[:1])
  expected = generated(
    SamplingEngine(module, params, one), CONFIG, GenerationInputs(3, 3)
  )
  positive, _ = sides(1)
  made = export_sampler(module, params, CONFIG, positive, is_inside)
  assert bool(made.weights) != is_inside
  program = jax_export.deserialize(bytearray(made.program))
  assert program.platforms == PLATFORMS
  guidance = np.float32([CONFIG.guidance.scale, 0, 0, 1])
  for first, count in ((0, 3), (2, 1)):
    both = [{"raw": s.raw, "is_null": s.is_null} for s in sides(count)]
    found = jax.jit(program.call)(
      made.weights,
      tuple(both),
      np.uint32([0, CONFIG.seed]),
      np.int32(first),
      guidance,
    )
    wanted = expected[first : first + count]
    assert np.abs(np.asarray(found, int) - wanted).max() <= 1


def saved_images(place):
  names = sorted(n for n in os.listdir(place) if n[:5].isdigit())
  return np.stack([np.asarray(Image.open(place / n), int) for n in names])


@pytest.mark.slow
def test_the_folder_generates_without_this_package(folder, tmp_path, capsys):  # noqa: F811
  out = tmp_path / "portable"
  size = ["--steps=3", "-H=16", "-W=16", "--sampler=euler a"]
  flags = [f"--model={folder}", *size]
  made = [*flags, f"--out={out}", "--guidance=2", "--chunks=2"]
  assert export.main(made) == 0
  assert capsys.readouterr().out.split() == [str(out)]
  prompt = f"{PROMPT} BREAK a blue car"
  asked = ["--prompt", prompt, "--num", "2", "--seed", str(2**40 + 7)]
  there = ["--out", str(tmp_path / "theirs")]
  done = subprocess.run(
    [sys.executable, "-c", ALONE, str(out / "run.py"), *asked, *there],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  ours = [
    *flags,
    *asked,
    "--guidance=2",
    "--emphasis",
    f"--out={tmp_path / 'ours'}",
  ]
  assert sample.main(ours) == 0
  found, expected = (
    saved_images(tmp_path / "theirs"),
    saved_images(tmp_path / "ours"),
  )
  assert expected.std() > 1
  assert np.abs(found - expected).max() <= 1
  # Another prompt gives another image.
  other = ["--prompt", "a blue car", "--num", "1", "--seed", "7"]
  subprocess.run(
    [sys.executable, str(out / "run.py"), *other, "--out", tmp_path / "other"],
    check=True,
    capture_output=True,
  )
  assert np.abs(saved_images(tmp_path / "other") - found[:1]).max() > 1


TEXTS = (
  *("", PROMPT, "snow " * 75, "snow " * 76, "snow " * 160),
  *(f"{PROMPT} BREAK a blue car", "snow " * 80 + "BREAK fox", "fox BREAK"),
)


@pytest.fixture
def alone(clip_prompts, tmp_path, monkeypatch):  # noqa: F811
  """run.py's own functions, with a tokenizer file next to it."""
  prompts = clip_prompts[1]
  prompts.syntaxes[0].fixed.save(str(tmp_path / "tokenizer_0.json"))
  monkeypatch.setattr(exported_runner, "HERE", tmp_path)
  return {
    "kind": "text",
    "input_key": "tokens",
    "is_stacked": True,
    "tokenizers": ["tokenizer_0.json"],
  }, prompts


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_are_split_as_by_sample(alone, text):
  """Into chunks, at BREAK too."""
  conditioner, prompts = alone
  found = exported_runner.tokens(conditioner, text)
  wanted = prompts.encode([parse_prompt_weights(text)])
  np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("text", TEXTS)
def test_prompts_of_one_chunk_are_cut_as_by_sample(alone, text, capsys):
  conditioner, prompts = alone
  found = exported_runner.tokens(conditioner | {"max_chunks": 1}, text)
  cut, prompt = dataclasses.replace(prompts, max_chunks=1), text.strip()
  wanted = cut.encode([parse_prompt_weights(text)])
  np.testing.assert_array_equal(found, wanted)
  is_cut = bool(cut.left_out(parse_prompt_weights(prompt)))
  assert ("CLIP reads the beginning" in capsys.readouterr().err) == is_cut


def test_prompts_of_t5_are_those_of_sample(tmp_path, monkeypatch, capsys):
  own = t5_files.tokenizer_folder(tmp_path / "t5")
  tokenizer = tokenizers.load(own, 8)
  tokenizer.fixed.save(str(tmp_path / "t5_tokenizer_0.json"))
  monkeypatch.setattr(exported_runner, "HERE", tmp_path)
  names = {"is_stacked": False, "tokenizers": ["t5_tokenizer_0.json"]}
  for text in ("", "a red fox", "a red fox in the snow of the cat"):
    found = exported_runner.tokens(names, text)
    np.testing.assert_array_equal(found, tokenizer.encode([text]))
  assert "is beyond its length" in capsys.readouterr().err


def test_both_sides_have_one_length_or_are_refused(alone):
  conditioner, _ = alone
  settings = {"conditioners": [conditioner], "tokens_per_chunk": 77}
  side = lambda text: {
    "raw": {"tokens": exported_runner.tokens(conditioner, text)}
  }
  for texts, most, chunks in (
    (("snow " * 160, ""), 3, 3),
    ((PROMPT, "snow " * 80), 2, 2),
    (("snow " * 160, "snow " * 80), 6, 6),
    ((PROMPT, ""), 1, 1),
  ):
    sides = [side(text) for text in texts]
    found = exported_runner.same_length(settings | {"chunks": most}, sides)
    assert found == chunks
    assert {s["raw"]["tokens"].shape for s in sides} == {(1, 1, 77 * chunks)}
  with pytest.raises(SystemExit, match="export with --chunks 3"):
    exported_runner.same_length(
      settings | {"chunks": 2}, [side("snow " * 160), side("")]
    )


@pytest.mark.parametrize(
  "text, names",
  [
    ("a fox AND a car", "AND"),
    ("a [fox:car:0.5]", "[a:b:0.5]"),
    ("a (fox:1.3)", "(weights)"),
    ("a fox <lora:snow:0.8>", "<lora:x:0.8>"),
    ("a fox BREAK and a car", None),
  ],
)
def test_syntax_that_run_py_does_not_read_is_named(capsys, text, names):
  exported_runner.check_syntax((text, None))
  said = capsys.readouterr().err
  assert (names is None and not said) or said.startswith(f"note: {names} in")


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32, 2**64 - 1])
def test_seeds_of_64_bits_are_those_of_sample(seed):
  words = np.array([seed >> 32, seed % 2**32], np.uint32)
  found = jax.jit(lambda s: jax.random.key_data(image_root(s)))(words)
  np.testing.assert_array_equal(found, jax.random.key_data(image_root(seed)))


def test_what_cannot_be_exported_is_one_line(folder, tmp_path):  # noqa: F811
  flags = [f"--model={folder}", f"--out={tmp_path / 'new'}"]
  for wrong, message in (
    (["--steps=0"], "steps must be between"),
    (["-H=17", "-W=16"], "multiples of"),
    (["--sampler=eulr"], "eulr"),
    (["--chunks=0"], "chunks must be 1 to 8, got 0"),
    ([f"--out={tmp_path}"], "exists already"),
  ):
    with pytest.raises(CommandError, match=message) as caught:
      export.main([*flags, *wrong])
    assert caught.value.code == 2 and "\n" not in str(caught.value)
  assert not os.listdir(tmp_path)


def test_the_folder_records_its_settings(folder, tmp_path):  # noqa: F811
  out = tmp_path / "portable"
  flags = [f"--model={folder}", "--steps=2", "-H=16", "-W=16", "--inside"]
  assert export.main([*flags, f"--out={out}"]) == 0
  settings = json.loads((out / "sampler.json").read_text())
  assert settings["sampler_config"]["steps"] == 2 and settings["height"] == 16
  assert not (out / "weights.safetensors").exists()
