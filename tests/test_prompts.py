"""Prompts of one call: each image is as if it were generated alone."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import family, file_of
from test_generation import (
  distance,
  pipe,  # noqa: F401, a fixture
)
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.prompt_syntax import parts_of, phases_of, split_loras
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.schedule import Level
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.open_model import run_tokenizer
from ldm_jax.sampling.inputs import prompt_inputs
from ldm_jax.sampling.inputs.lora_folder import find_loras
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.request import Replay
from ldm_jax.sampling.sampling_config import Conditioning
from ldm_jax.sampling.steps.denoising_steps import weighted_condition
from ldm_jax.weights.safetensors_files import write_safetensors

SIZE = {"height": 16, "width": 16, "steps": 3}
LONG = "fox in the snow " * 30


def latents(pipe, prompt, **fields):  # noqa: F811
  fields = SIZE | {"output": "latents", "guidance": 3.0} | fields
  return pipe(prompt=prompt, **fields).images


def test_a_long_prompt_changes_no_other_image(pipe):  # noqa: F811
  """To the last bit, where batches are as large."""
  prompts = ["a red fox", LONG, "snow", LONG]
  together = latents(pipe, prompts, num=2)
  for i, prompt in enumerate(prompts):
    alone = latents(pipe, prompt, num=2, index=2 * i)
    np.testing.assert_array_equal(together[2 * i : 2 * i + 2], alone)


@pytest.mark.slow
def test_a_side_of_guidance_does_not_depend_on_the_others_length(
  pipe,  # noqa: F811
  monkeypatch,
):
  """Repeated to one length, or evaluated each by itself, it is the same."""
  found = {}
  for most in (4, 0):
    monkeypatch.setattr(prompt_inputs, "MAX_REPEATS", most)
    for emphasis in (False, True):
      prompt = "a (red:1.4) fox" if emphasis else "a red fox"
      fields = {"negative_prompt": LONG, "emphasis": emphasis}
      found[most, emphasis] = latents(pipe, prompt, **fields)
  for emphasis in (False, True):
    gap = np.abs(found[4, emphasis] - found[0, emphasis]).max()
    assert gap < 1e-4 * np.abs(found[0, emphasis]).max()


def test_without_guidance_the_negative_prompt_changes_nothing(pipe):  # noqa: F811
  ids = [
    pipe.prepare("a red fox", guidance=1.0, negative_prompt=negative, **SIZE)
    .groups[0]
    .variants[0]
    .positives[0]
    .raw["tokens"]
    for negative in (None, LONG)
  ]
  np.testing.assert_array_equal(*ids)


@pytest.mark.parametrize("embeds_guidance", [False, True])
def test_a_negative_prompt_that_is_not_read_is_named(embeds_guidance, caplog):
  loaded, *_ = family("sd1")
  syntax = PromptSyntax(TokenizerConfig(length=9).build(["a b"]), 0)
  width = 8 if embeds_guidance else None
  unet = loaded.model.unet.clone(guidance_width=width)
  network = dataclasses.replace(loaded.model, unet=unet)
  prompts = ClipPrompts((syntax,))
  own_pipe = Pipeline(
    dataclasses.replace(loaded, model=network, tokenizer=prompts)
  )
  fields = {"prompt": "a", "output": "latents", "guidance": 4.0} | SIZE
  for negative in (None, "b"):
    own_pipe.prepare(negative_prompt=negative, **fields)
    lines = [m for m in caplog.messages if "--negative_prompt" in m]
    assert len(lines) == (negative == "b" and embeds_guidance)


@pytest.mark.parametrize(
  "fields, chunks",
  [
    ({}, None),
    ({"is_all_pooled": True}, 1),
    ({"is_pooled": True, "has_context": False}, 1),
  ],
)
def test_a_run_cuts_prompts_as_its_text_encoder_reads_them(fields, chunks):
  """SD 3 and FLUX read one chunk of CLIP's."""
  embedder = ClipEmbedder((ClipText(9, 2, 1, 1, length=6),), **fields)
  network = LatentDiffusion(None, Mean(), (embedder,))
  tokenizer = TokenizerConfig(length=6).build(["a b"])
  found = run_tokenizer(network, tokenizer)
  assert found.max_chunks == chunks
  ids = found.encode(["a b " * 6])
  assert (ids.shape[-1] > 6) == (chunks is None)


def test_weights_change_the_features_of_their_encoder_alone():
  """z_empty + weight (z - z_empty), by text encoder."""
  encoders = ClipText(9, 2, 1, 1, 4), ClipText(9, 3, 1, 1, 4)
  embedder = ClipEmbedder(encoders, (0, 0), (8, 0), begin=7, end=8)
  network = LatentDiffusion(None, Mean(), (embedder,))
  ids = jnp.int32([[[7, 1, 2, 8], [7, 3, 1, 8]]])
  no, yes = jnp.zeros(1, bool), jnp.ones(1, bool)
  variables = jax.jit(embedder.init)(jax.random.key(0), ids, no)
  params = Parameters({}, 1.0, {"tokens": variables}, {})
  plain, empty = (
    np.asarray(jax.jit(embedder.apply)(variables, ids, drop).context)
    for drop in (no, yes)
  )
  weights = np.ones((1, 2, 4), np.float32)
  weights[0, 0, 1], weights[0, 1, 2] = 2.0, 0.0
  side = Conditioning(
    {"tokens": ids},
    {"tokens": no},
    {"tokens": jnp.asarray(weights)},
    {"tokens": embedder.empty_prompt_ids(4)[None]},
  )
  expected = plain.copy()
  expected[0, 1, :2] = 2 * plain[0, 1, :2] - empty[0, 1, :2]
  expected[0, 2, 2:] = empty[0, 2, 2:]
  encode = jax.jit(functools.partial(weighted_condition, network))
  found = encode(params, side).context
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_of_the_version_before_are_repeated(pipe):  # noqa: F811
  """They all had the chunks of the longest prompt of their request."""
  fields = {"replay": Replay(2, 8, 0, 4), "negative_prompt": "snow"}
  generation = pipe.prepare("a fox", **SIZE, **fields)
  ((positive,), negative, _) = generation.groups[0].variants[0]
  for side in (positive, negative):
    ids = side.raw["tokens"][0, 0].reshape(4, 77)
    assert (ids[1:] == ids[1]).all() and (ids[0] != ids[1]).any()


PHASES = {
  "a cat": [(1.0, "a cat")],
  "a [cat:dog:0.5] x": [(0.5, "a cat x"), (1.0, "a dog x")],
  "a [dog:2]": [(0.5, "a "), (1.0, "a dog")],
  "a [cat::3]": [(0.75, "a cat"), (1.0, "a ")],
  "[(cat:1.3):[a:b:3]:1]": [(0.25, "(cat:1.3)"), (0.75, "a"), (1.0, "b")],
  "[(a:1.1)|(b:0.9)]": [
    *((0.25, "(a:1.1)"), (0.5, "(b:0.9)")),
    *((0.75, "(a:1.1)"), (1.0, "(b:0.9)")),
  ],
  "[a|b]": [(0.25, "a"), (0.5, "b"), (0.75, "a"), (1.0, "b")],
  "[cat] (a:1.2) [b": [(1.0, "[cat] (a:1.2) [b")],
  r"\[a|b\]": [(1.0, r"\[a|b\]")],
  "[a:b]": [(1.0, "[a:b]")],
  "[" * 3000 + "a:1]" * 2: None,
}


@pytest.mark.parametrize("text", PHASES)
def test_prompts_change_from_step_to_step(text):
  found = [tuple(phase) for phase in phases_of(text, 4)]
  assert found == PHASES[text] or PHASES[text] is None


def test_and_separates_prompts_with_weights():
  plain = lambda text: [(p.prompt.text, p.weight) for p in parts_of(text)]
  assert plain("a cat :2") == [("a cat :2", 1.0)]
  assert plain("a cat AND\n(dog:1.2) :1.5 AND sand") == [
    ("a cat", 1.0),
    ("dog", 1.5),
    ("sand", 1.0),
  ]
  with pytest.raises(ConfigError, match="within"):
    parts_of("a AND b :1000")


def test_loras_are_taken_out_of_prompts():
  text, tags = split_loras("a <lora:my style:0.5>fox <lora:b>")
  assert text == "a fox " and tags == (("my style", 0.5), ("b", 1.0))
  for scale in ("x", "nan", "1e9", "1000"):
    with pytest.raises(ConfigError, match="must be a number"):
      split_loras(f"<lora:a:{scale}>")


class Mean(nn.Module):
  """A backbone whose output is the mean of its context."""

  size_multiple = 1

  def __call__(self, xt, t, condition):
    return xt + jnp.mean(condition.context, (1, 2))[:, None, None, None]


@pytest.mark.parametrize("length", [2, 3])
def test_conditions_of_any_length_are_composed(length):
  """negative + sum_i w_i (positive_i - negative), then guided."""
  network = LatentDiffusion(None, Mean(), prediction="x0")
  params = Parameters({}, 1.0, {}, {})
  level = Level(jnp.float32(3), jnp.float32(0.8), jnp.float32(0.6))
  rng = np.random.default_rng(0)
  away, one, two = (
    Condition(context=jnp.float32(rng.normal(size=(2, n, 4))))
    for n in (2, length, 2)
  )
  weights = jnp.float32([[1.0, 0.5], [0.2, -1.0]])
  guidance = ClassifierFreeGuidance(3.0)
  xt = jnp.zeros((2, 1, 1, 1))
  denoise = network.composed_denoiser(
    params, away, [one, two], weights, guidance
  )
  mean = lambda condition: np.mean(condition.context, (1, 2))
  composed = mean(away) + sum(
    weights[:, i] * (mean(each) - mean(away))
    for i, each in enumerate([one, two])
  )
  expected = mean(away) + 3.0 * (composed - mean(away))
  found = denoise(xt, level).x0[:, 0, 0, 0]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  guided = network.guided_denoiser(params, away, one, guidance)(xt, level).x0
  expected = mean(away) + 3.0 * (mean(one) - mean(away))
  np.testing.assert_allclose(guided[:, 0, 0, 0], expected, rtol=1e-5)


SLOW = pytest.mark.slow
COMPOSED = {
  "a fox AND snow :0": "a fox",
  "a fox :0.5 AND a fox :0.5": "a fox",
}
EQUAL = {
  "[a fox:snow:0]": "snow",
  "[a fox:snow:3]": "a fox",
  "[a fox:a fox:1]": "a fox",
}


@pytest.mark.parametrize(
  "prompt", [*EQUAL, *(pytest.param(each, marks=SLOW) for each in COMPOSED)]
)
def test_composed_and_edited_prompts_that_are_one_prompt(pipe, prompt):  # noqa: F811
  found = latents(pipe, prompt, emphasis=True)
  one = latents(pipe, (EQUAL | COMPOSED)[prompt], emphasis=True)
  np.testing.assert_allclose(found, one, atol=1e-4 * np.abs(one).max())


@SLOW
def test_prompts_are_composed_and_edited(pipe):  # noqa: F811
  """Each with as many as it has parts, in one call."""
  prompts = ["a fox", "a fox AND snow :0.7", "[a fox:snow:1]", "[a fox|snow]"]
  found = latents(pipe, prompts, emphasis=True)
  for i, prompt in enumerate(prompts):
    alone = latents(pipe, prompt, emphasis=True, index=i)
    np.testing.assert_array_equal(found[i : i + 1], alone)
    if i:
      plain = latents(pipe, "a fox", emphasis=True, index=i)
      assert np.abs(alone - plain).max() > 1e-3


def test_interpolation_takes_one_prompt_at_either_end(pipe):  # noqa: F811
  with pytest.raises(ConfigError, match="interpolate takes prompts without"):
    pipe.prepare("a AND b", emphasis=True, interpolate=2, **SIZE)


def test_syntax_that_is_not_read_is_named(pipe, caplog):  # noqa: F811
  pipe.prepare("a (fox:1.2) BREAK [a:b:0.5] {a|b}", **SIZE)
  (line,) = [m for m in caplog.messages if "plain text" in m]
  assert line.startswith("(word:1.3), BREAK, [a:b:0.5], {a|b} in 'a (fox:1.2)")
  assert "--emphasis" in line
  caplog.clear()
  fields = {"emphasis": True, "negative_prompt": "a AND b"} | SIZE
  pipe.prepare("a (fox:1.2) BREAK <hypernet:x:1>", **fields)
  lines = [m for m in caplog.messages if "plain text" in m]
  assert [line.partition(" in ")[0] for line in lines] == [
    "<hypernet:...>",
    "AND of a negative prompt",
  ]


def test_an_edited_prompt_compiles_nothing(pipe):  # noqa: F811
  latents(pipe, "a fox", emphasis=True)
  from ldm_jax.sampling.request import GenerationRequest

  _, engine = pipe._adapted.engine(GenerationRequest())
  compiled = engine._chunk._jitted._cache_size()
  latents(pipe, "[a fox:snow:0.4]", emphasis=True)
  assert engine._chunk._jitted._cache_size() == compiled


@pytest.fixture
def lora_folder(tmp_path):
  for i, scale in enumerate((1.0, 0.1)):
    tensors = file_of("sd1", "kohya")
    tensors, info = tensors if isinstance(tensors, tuple) else (tensors, {})
    tensors = {n: scale * t if "up" in n else t for n, t in tensors.items()}
    path = str(tmp_path / f"style {i}.safetensors")
    write_safetensors(path, tensors, metadata=info)
  return tmp_path


def test_a_prompt_names_its_loras(lora_folder):
  """Each prompt of a call has its own; the model itself stays as it is."""
  loaded, *_ = family("sd1")
  syntax = PromptSyntax(TokenizerConfig(length=9).build(["a b"]), 0)
  tokenizer = ClipPrompts((syntax,))
  own_pipe = Pipeline(dataclasses.replace(loaded, tokenizer=tokenizer))
  own_pipe.lora_folder = lora_folder
  prompts = ["a", "a <lora:style 0:0.5>", "a", "a <lora:style 1>"]
  generation = own_pipe.prepare(prompt=prompts, output="latents", **SIZE)
  assert [group.places.tolist() for group in generation.groups] == [
    [0, 2], [1], [3],
  ]  # fmt: skip
  own, first, second = (
    generation.parameters(group.loras) for group in generation.groups
  )
  assert own is None
  expected = merge_lora(loaded, lora_folder / "style 0.safetensors", scale=0.5)
  assert distance(first.unet, expected.params.unet) == 0
  assert distance(first.unet, second.unet) > 0
  ids = [
    group.variants[0].positives[0].raw["tokens"] for group in generation.groups
  ]
  np.testing.assert_array_equal(ids[0][0], ids[1][0])
  assert set(generation.metadata(1)["prompt_loras"]) == {"style 0", "style 1"}
  assert generation.metadata(1)["prompt"] == prompts[1]


@pytest.mark.parametrize(
  "name, line",
  [
    ("style", "did you mean style"),
    ("../style 0", "no file '../style 0.safetensors'"),
    ("/etc/passwd", "no file"),
    ("style 0.safetensors", "no file"),
  ],
)
def test_only_files_of_the_folder_are_named(lora_folder, name, line):
  (lora_folder / "inside").mkdir()
  with pytest.raises(ConfigError, match=line):
    find_loras(lora_folder / "inside" / "..", [f"a <lora:{name}:1>"])
  assert find_loras(lora_folder, ["a <lora:style 0>"])
  with pytest.raises(ConfigError, match="--lora_folder"):
    find_loras(None, [f"a <lora:{name}:1>"])
  with pytest.raises(ConfigError, match="No such file"):
    find_loras(lora_folder / "missing", [f"a <lora:{name}:1>"])
