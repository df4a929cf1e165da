"""Values of wrong types from Python callers are one line of ConfigError."""

import dataclasses
import pathlib

import jaxtyping
import numpy as np
import pytest

import ldm_jax
from ldm_jax.errors import ConfigError

WRONG = (
  object(),
  "x",
  b"x",
  None,
  True,
  3,
  -1.5,
  float("nan"),
  2j,
  [],
  ["x", None],
  [[1]],
  {"x": 1},
  {1: object()},
  {1, 2},
  (1, 2, 3, 4, 5),
  int,
  len,
)
NEEDED = {
  "EvaluationRequest": {"samples": "a"},
  "ReportRequest": {"model": "a", "out": "b"},
  "RetrievalRequest": {"encoder": "a", "out": "b", "config": "c"},
  "PlanRequest": {"config": "a"},
  "PrepareRequest": {"config": "a", "out": "b"},
  "ConvertRequest": {"source": "a", "target": "b"},
  "ExportRequest": {"model": "a", "out": "b"},
  "GenerationRequest": {},
  "LoadOptions": {},
}
FIELDS = [
  (name, field.name)
  for name in NEEDED
  for field in dataclasses.fields(getattr(ldm_jax, name))
]


@pytest.fixture(autouse=True)
def without_the_tests_own_check():
  """The package as its users import it, without conftest's type checker."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


def one_line(error):
  assert "\n" not in str(error) and len(str(error)) < 500, error


@pytest.mark.parametrize("name, field", FIELDS)
def test_every_field_refuses_a_wrong_value_or_has_it(name, field):
  kind, refused = getattr(ldm_jax, name), 0
  for value in WRONG:
    try:
      kind(**NEEDED[name] | {field: value})
    except ConfigError as error:
      one_line(error)
      refused += 1
  assert refused > 5


@pytest.mark.parametrize("field, value, message", [
  ("num", "x", r"num must be int; got 'x' \(str\)"),
  ("num", True, r"num must be int; got True \(bool\)"),
  ("steps", 20.0, r"steps must be int; got 20\.0 \(float\)"),
  ("guidance", "7", r"guidance must be int or float or Guidance or None; got"),
  ("times", "999", r"times must be a list, each int or float; got '999'"),
  ("outpaint", (0, 0), "outpaint must be 4 values, each int or None"),
  ("rng", "numpy", r"rng must be 'jax' or 'torch'; got 'numpy'"),
  ("prompt", [1], r"prompt must be str or a list, each str; got \[1\]"),
  ("sampler", 5, r"sampler must be str or Sampler or None; got 5"),
  ("emphasis", 1, r"emphasis must be bool; got 1"),
])  # fmt: skip
def test_a_message_has_what_is_got_and_needed(field, value, message):
  with pytest.raises(ConfigError, match=message):
    ldm_jax.GenerationRequest(**{field: value})


def test_what_python_callers_write_is_admitted():
  request = ldm_jax.GenerationRequest(
    num=np.int64(2),
    guidance=np.float32(7.5),
    times=[999, 700.5],
    prompt=["a", "b"],
    image=pathlib.Path("a.png"),
    initial_latents=None,
    sampler=lambda noise_levels: (),
  )
  assert request.times == (999, 700.5) and request.num == 2
  assert type(request.num) is int and type(request.guidance) is float
  assert request.image == pathlib.Path("a.png")
  latents = np.zeros((1, 2, 2, 4))
  changed = dataclasses.replace(request, initial_latents=latents)
  assert changed.initial_latents is latents
  path = pathlib.Path("model")
  assert ldm_jax.ConvertRequest(path, "x").source == "model"
  assert ldm_jax.LoadOptions(lora=["a:1", ("b", 2)]).lora == ["a:1", ("b", 2)]


CALLS = {
  name: getattr(ldm_jax, name)
  for name in (
    *("train", "prepare", "verify", "evaluate", "report", "retrieve", "plan"),
    *("convert", "inspect", "export", "open_model", "from_pretrained"),
    "from_single_file",
  )
} | {
  f"Pipeline.{name}": getattr(ldm_jax.Pipeline, name)
  for name in ("open", "from_pretrained", "from_single_file", "from_run")
}


@pytest.mark.parametrize("name", CALLS)
def test_functions_refuse_arguments_of_other_types(name):
  extra = ("run",) if name == "train" else ()
  for value in (object(), 3, 2.5, None, True, b"x", ["a"], {"a": 1}, int, len):
    with pytest.raises(ConfigError, match="must be") as error:
      CALLS[name](value, *extra)
    one_line(error.value)


@pytest.mark.parametrize("method, arguments", [
  ("load_lora", (5,)),
  ("load_lora", ("a", "x")),
  ("load_lora", ("a", 1.0, 3)),
  ("unload_lora", (3,)),
  ("set_lora_scale", ("x",)),
  ("load_textual_inversion", (None,)),
  ("load_textual_inversion", ("a", 5)),
  ("request_of", (5,)),
  ("prepare", (5,)),
  ("__call__", (["a"],)),
])  # fmt: skip
def test_methods_of_a_pipeline_refuse_other_types(method, arguments):
  pipe = object.__new__(ldm_jax.Pipeline)
  with pytest.raises(ConfigError, match="must be") as error:
    getattr(pipe, method)(*arguments)
  one_line(error.value)
  with pytest.raises(ConfigError, match="name must be"):
    pipe.sampler = 5
  with pytest.raises(ConfigError, match="callback must be"):
    pipe("a", callback=3)
  with pytest.raises(ConfigError, match="callback_steps must be int"):
    pipe("a", callback_steps="x")
