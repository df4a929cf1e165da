"""Requests and the pipeline that fulfils them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lora_files import family, file_of
from PIL import Image
from test_pretrained import clip_prompts, file, folder, model  # noqa: F401, fixtures

from ldm_jax.diffusion.torch_noise import torch_normal
from ldm_jax.errors import ConfigError
from ldm_jax.runtime.devices.replication import replicate
from ldm_jax.runtime.image_files import write_png
from ldm_jax.sampling.initial_latents import image_root
from ldm_jax.sampling.metadata import (
  image_metadata,
  png_text,
  read_metadata,
  request_metadata,
)
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.request import GenerationRequest, Replay
from ldm_jax.weights.safetensors_files import write_safetensors

SIZE = {"height": 16, "width": 16, "steps": 3}
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
MASK = np.zeros((16, 16), np.uint8)
MASK[4:12, 4:12] = 255


@pytest.fixture(scope="module")
def pipe(folder):  # noqa: F811
  return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """An image and a mask, by the fields that take them."""
  place = tmp_path_factory.mktemp("inputs")
  found = {name: str(place / f"{name}.png") for name in ("image", "mask")}
  Image.fromarray(IMAGE).save(found["image"])
  Image.fromarray(MASK).save(found["mask"])
  return found


def pixels(result):
  return np.stack([np.asarray(image) for image in result.images])


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"num": 0}, "num must be 1 or more, got 0"),
    ({"batch": -1}, "batch must be 1 or more"),
    ({"window": 0}, "window must be 1 or more"),
    ({"seed": -2}, "seed must be 0 to 18446744073709551615, or -1"),
    ({"seed": 2**64}, "seed must be"),
    ({"guidance": float("nan")}, "guidance must be within"),
    ({"guidance": 1e9}, "guidance must be within"),
    ({"guidance_rescale": 2.0}, "must be 0 to 1"),
    ({"guidance_interval": (0.8, 0.2)}, "must increase"),
    ({"variation": 2.0}, "variation must be 0 to 1"),
    ({"interpolate": 1}, "N >= 2"),
    ({"interpolate": 3, "num": 2}, "leave num out"),
    ({"interpolate": 3, "variation": 0.5}, "exclude each other"),
    ({"interpolate": 3, "prompt": ["a", "b", "c"]}, "3 prompts"),
    ({"interpolate": 3, "index": 3}, "index must be 0 to 2"),
    ({"mask": MASK}, "need an image"),
    ({"strength": 0.5}, "is of an image"),
    ({"image": IMAGE, "strength": 0.0}, "strength must be above 0"),
    ({"image": IMAGE, "strength": 1.5}, "strength must be above 0"),
    ({"image": IMAGE, "mask": MASK, "outpaint": (1, 0, 0, 0)}, "its own mask"),
    ({"image": IMAGE, "outpaint": (0, 0, 0, 0)}, "four numbers of pixels"),
    ({"image": IMAGE, "invert": True}, "invert needs an image"),
    ({"control_image": IMAGE}, "is for a ControlNet"),
    ({"times": (9.0,), "sigmas": (1.0,)}, "not both"),
    ({"sampler": "eulr"}, "did you mean euler"),
    ({"timestep_spacing": "karas"}, "did you mean karras"),
    (
      {"initial_latents": np.zeros((1, 8, 8, 4)), "rng": "torch"},
      "initial_latents replace rng",
    ),
    ({"num": 2, "replay": Replay(2, 2, 0)}, "repeats one image"),
  ],
)
def test_impossible_requests_are_refused_by_field(fields, line):
  with pytest.raises(ConfigError, match=line) as caught:
    GenerationRequest(**fields)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "fields, line",
  [
    ({"class_label": 1}, "not conditioned on classes; leave class_label out"),
    ({"depth": IMAGE[..., 0]}, "takes no depth"),
    ({"height": 15}, "multiple of 2"),
    ({"steps": 1001}, "between 1 and 1000"),
    ({"noise_level": 3}, "is not an upscaler"),
    ({"clip_skip": 0}, "cannot be skipped"),
    ({"sampler": "euler", "eta": 1.0}, "has no eta"),
    ({"rng": "torch", "eta": 1.0}, "draws more noise"),
    ({"image": "no.png"}, "image no.png: unreadable"),
    ({"image": IMAGE.astype(float)}, "image of float64"),
    ({"initial_latents": np.zeros((1, 3, 3, 4))}, "1 images of .* need"),
  ],
)
def test_requests_that_the_model_cannot_fulfil_are_refused(pipe, fields, line):
  with pytest.raises(ConfigError, match=line):
    pipe.prepare(prompt="a fox", **(SIZE | fields))


def test_outputs_are_images_arrays_or_latents(pipe):
  result = pipe("a red fox", num=2, **SIZE)
  assert [image.size for image in result.images] == [(16, 16)] * 2
  arrays = pipe("a red fox", num=2, output="numpy", **SIZE).images
  np.testing.assert_array_equal(arrays, pixels(result))
  latents = pipe("a red fox", num=2, output="latents", **SIZE).images
  assert latents.shape == (2, 8, 8, 4) and latents.dtype == np.float32
  assert [each["index"] for each in result.metadata] == [0, 1]
  assert result.request.sampler == "ddim" and result.request.guidance == 7.5


def test_inputs_may_be_paths_images_or_arrays(pipe, files):
  common = {"prompt": "a fox", "strength": 0.7} | SIZE
  kinds = (
    (files["image"], files["mask"]),
    (Image.fromarray(IMAGE), Image.fromarray(MASK)),
    (IMAGE, MASK > 0),
  )
  results = [pixels(pipe(image=i, mask=m, **common)) for i, m in kinds]
  for other in results[1:]:
    np.testing.assert_array_equal(results[0], other)
  kept = MASK == 0
  np.testing.assert_array_equal(results[0][0][kept], IMAGE[kept])


REPEATED = {
  "text": ({"prompt": "a red fox", "num": 3, "negative_prompt": "snow"}, 2),
  "several prompts": ({"prompt": ["fox", "fox in the snow " * 30]}, 0),
  "weights": ({"prompt": "a (red:1.4) fox", "emphasis": True, "num": 2}, 1),
  "variation": ({"prompt": "a fox", "variation": 0.4, "num": 3}, 2),
  "interpolation": ({"prompt": ["a fox", "snow"], "interpolate": 3}, 1),
  "torch's noise": ({"prompt": "a fox", "rng": "torch", "num": 2}, 1),
  "image to image": ({"prompt": "a fox", "image": 0, "strength": 0.7}, 0),
  "inpainting": ({"prompt": "a fox", "image": 0, "mask": 0, "num": 2}, 1),
  "outpainting": (
    {"prompt": "a fox", "image": 0, "outpaint": (4, 0, 0, 4), "height": None},
    0,
  ),
  "sampler": (
    {"prompt": "a fox", "sampler": "DPM++ 2M SDE Karras", "batch": 8, "num": 9},
    8,
  ),
}


@pytest.mark.parametrize("case", REPEATED)
def test_an_image_is_repeated_bit_for_bit_by_its_metadata(
  pipe, files, tmp_path, case
):
  fields, place = REPEATED[case]
  fields = SIZE | {k: files[k] if v == 0 else v for k, v in fields.items()}
  if fields["height"] is None:
    del fields["height"], fields["width"]
  result = pipe(**fields)
  path = result.save(tmp_path)[place]
  request = pipe.request_of(path)
  assert request.index == place or request.interpolate
  again = pipe(request)
  (image,) = again.images
  np.testing.assert_array_equal(image, result.images[place])
  assert again.metadata[0] == result.metadata[place]
  assert read_metadata(path) == json.loads(json.dumps(result.metadata[place]))


def test_a_changed_or_missing_input_is_refused(pipe, files, tmp_path):
  own = str(tmp_path / "own.png")
  Image.fromarray(IMAGE).save(own)
  (path,) = pipe("a fox", image=own, **SIZE).save(tmp_path / "a")
  (array,) = pipe("a fox", image=IMAGE, **SIZE).save(tmp_path / "b")
  Image.fromarray(255 - IMAGE).save(own)
  with pytest.raises(ConfigError, match="is not the file"):
    pipe.request_of(path)
  with pytest.raises(ConfigError, match="which it does not hold"):
    pipe.request_of(array)
  request = pipe.request_of(array, image=IMAGE)
  np.testing.assert_array_equal(pipe(request).images[0], Image.open(path))
  with pytest.raises(ConfigError, match="holds no metadata"):
    pipe.request_of(own)


OLD = {
  "prompt": "a fox", "negative_prompt": None, "class_label": None, "index": 1,
  "model": "", "clip_skip": None, "lora": None, "embedding": None, "rng": "jax",
  "image": None, "mask": None, "outpaint": None, "variation": None,
  "interpolate": None, "toward": None, "emphasis": False, "controlnet": None,
  "control_image": None, "segmap": None, "depth": None, "layout": None,
  "neighbours": None, "classifier": 1.0, "classifier_scale": None,
  "ldm_jax": "0.1.0", "steps": 3, "sampler": "ddim", "spacing": "karras",
  "eta": None, "order": None, "times": [], "sigmas": [],
  "compat": None, "steps_offset": 1, "guidance": 7.5,
  "height": 16, "width": 16, "seed": 3, "strength": 1.0, "threshold": None,
  "window": None, "tile": None, "noise_level": 20, "control": [1.0, 0.0, 1.0],
  "guidance_rescale": 0.0, "guidance_interval": [0.0, 1.0],
}  # fmt: skip


def test_metadata_of_the_previous_version_is_read(pipe, tmp_path):
  path = str(tmp_path / "old.png")
  info = Image.new("RGB", (16, 16))
  write_png(path, np.asarray(info), {"ldm_jax": json.dumps(OLD)})
  request = pipe.request_of(path)
  assert request.timestep_spacing == "karras" and request.seed == 3
  assert request.replay is None and request.strength is None
  new = pipe("a fox", num=2, seed=3, timestep_spacing="karras", **SIZE)
  gap = pixels(pipe(request)).astype(int) - pixels(new)[1:]
  assert np.abs(gap).max() <= 1
  write_png(
    path,
    np.asarray(info),
    {"ldm_jax": json.dumps(OLD | {"interpolate": 3, "toward": "snow"})},
  )
  assert pipe.request_of(path).prompts == ("a fox", "snow")


def test_other_programs_read_the_settings(pipe):
  (metadata,) = pipe(
    "a fox", negative_prompt="wet, blue", sampler="DPM++ 2M Karras", **SIZE
  ).metadata
  first, second, settings = png_text(metadata)["parameters"].split("\n")
  assert (first, second) == ("a fox", "Negative prompt: wet, blue")
  assert "Sampler: DPM++ 2M, Schedule type: Karras" in settings


@pytest.mark.parametrize("prompt", ["a fox", "caf\u00e9", "\u732b"])
def test_text_of_latin_letters_is_in_chunks_that_all_readers_know(
  tmp_path, prompt
):
  """The settings follow a negative prompt, even if there is none."""
  fields = request_metadata(GenerationRequest(prompt=prompt, sampler="ddim"))
  fields |= {"model": "", "width": 8, "height": 8}
  metadata = image_metadata(fields, prompt, 0, Replay(1, 1, 0))
  path = str(tmp_path / "a.png")
  write_png(path, IMAGE, png_text(metadata))
  kind = b"iTXt" if prompt == "\u732b" else b"tEXt"
  assert kind + b"parameters\0" in (tmp_path / "a.png").read_bytes()
  with Image.open(path) as image:
    first, second, settings = image.text["parameters"].split("\n")
  assert (first, second) == (prompt, "Negative prompt: ")
  assert settings.startswith("Steps: 50, Sampler: DDIM")
  assert read_metadata(path)["prompt"] == prompt


def test_a_seed_is_drawn_and_reported(pipe, caplog):
  caplog.set_level("INFO", logger="ldm_jax")
  seeds = [
    pipe.prepare("a fox", seed=-1, **SIZE).request.seed for _ in range(3)
  ]
  assert len(set(seeds)) > 1 and 0 <= min(seeds) <= max(seeds) < 2**32
  for seed in seeds:
    assert f"seed {seed}" in caplog.messages


def test_seeds_have_64_bits():
  root = lambda seed: jax.random.key_data(image_root(seed)).tolist()
  seeds = [3, 2**32 + 3, 2**33 + 3, 2**64 - 1, 2**32 - 1]
  assert len({tuple(root(seed)) for seed in seeds}) == len(seeds)
  # Of 32 bits they are what they always were, traced or not.
  own = jax.random.fold_in(jax.random.key(3), 0)
  assert root(3) == jax.random.key_data(own).tolist()
  assert root(jnp.array([0, 3], jnp.uint32)) == root(3)
  assert root(jnp.array([2, 3], jnp.uint32)) == root(2**33 + 3)
  with jax.enable_x64(True):  # where jax itself has keys of 64 bits
    key = jax.random.fold_in(jax.random.key(2**33 + 3), 0)
    assert root(2**33 + 3) == jax.random.key_data(key).tolist()
  # torch takes the lower 32.
  np.testing.assert_array_equal(
    torch_normal(2**40 + 5, (16,)), torch_normal(5, (16,))
  )


def test_a_callback_follows_every_step_and_changes_nothing(pipe):
  seen, shown = [], []
  plain = pixels(pipe("a fox", num=2, seed=5, **SIZE))
  follow = lambda done, total, preview: seen.append((done, total, preview))
  found = pipe("a fox", num=2, seed=5, callback=follow, **SIZE)
  assert seen == [(i, 3, None) for i in (1, 2, 3)]
  np.testing.assert_array_equal(pixels(found), plain)
  show = lambda done, total, preview: shown.append(preview)
  found = pipe("a fox", num=2, seed=5, callback=show, preview=True, **SIZE)
  gap = pixels(found).astype(int) - plain
  assert np.abs(gap).max() <= 1
  assert all(each.shape[1:] == (16, 16, 3) for each in shown)
  # DDIM stops at the schedule's first time, almost at the last x0.
  assert np.abs(shown[-1][:2].astype(int) - plain).mean() < 3
  assert np.abs(shown[0][:2].astype(int) - plain).mean() > 3


def test_batches_are_yielded_as_they_are_finished(pipe):
  request = GenerationRequest(prompt=["a", "b", "c"], num=4, batch=8, **SIZE)
  batches = pipe.prepare(request).batches()
  first = next(batches)
  assert len(first.arrays) == 8 and list(first.prompts) == [*"aaaabbbb"]
  (second,) = batches
  assert [each["prompt"] for each in second.metadata] == ["c"] * 4
  assert [each["index"] for each in second.metadata] == [8, 9, 10, 11]


def test_nothing_but_a_size_compiles(pipe):
  pipe("a fox", num=2, **SIZE)
  _, engine = pipe._adapted.engine(GenerationRequest())
  compiled = engine._chunk._jitted._cache_size()
  for fields in (
    {"steps": 7},
    {"guidance": 2.0, "guidance_rescale": 0.5},
    {"seed": 9},
    {"sampler": "DPM++ 2M Karras"},
    {"sampler": "UniPCMultistepScheduler", "order": 3},
    {"prompt": "snow"},
  ):
    pipe(**({"prompt": "a fox", "num": 2} | SIZE | fields))
  assert engine._chunk._jitted._cache_size() == compiled
  pipe("a fox", num=2, height=20, width=16, steps=3)
  assert engine._chunk._jitted._cache_size() == compiled + 1


def test_parameters_are_on_all_devices_before_a_program_is_called(
  pipe,
  model,  # noqa: F811
):
  """Those on one device alone would be copied at each call."""
  _, engine = pipe._adapted.engine(GenerationRequest())
  params = engine._params
  assert all(len(x.devices()) == 8 for x in jax.tree.leaves(params))
  jax.tree.map(np.testing.assert_array_equal, params, model[1])
  assert replicate(params, engine.sharding) is params
  chunk, calls = engine._chunk, []

  def guarded(*arrays, **static):
    calls.append(1)
    with jax.transfer_guard_device_to_device("disallow"):
      return chunk(*arrays, **static)

  pipe("a fox", num=2, **SIZE)
  engine._chunk = guarded
  try:
    pipe("a fox", num=2, **SIZE)
  finally:
    engine._chunk = chunk
  assert calls


def test_a_sampler_is_swapped_by_name(pipe):
  named = pipe("a fox", sampler="Euler a", **SIZE)
  own = pipe("a fox", **SIZE)
  pipe.sampler = "EulerAncestralDiscreteScheduler"
  try:
    swapped = pipe("a fox", **SIZE)
  finally:
    pipe.sampler = None
  np.testing.assert_array_equal(pixels(swapped), pixels(named))
  assert swapped.metadata[0]["sampler"] == "euler_ancestral"
  assert np.any(pixels(own) != pixels(named))
  with pytest.raises(ConfigError, match="did you mean"):
    pipe.sampler = "eulr"


def test_loras_are_loaded_scaled_and_unloaded(tmp_path):
  loaded, *_ = family("sd1")
  tensors = file_of("sd1", "kohya")
  tensors, info = tensors if isinstance(tensors, tuple) else (tensors, {})
  path = str(tmp_path / "style.safetensors")
  write_safetensors(path, tensors, metadata=info)
  pipe = Pipeline(loaded)
  params = lambda: pipe._adapted.engine(GenerationRequest())[0].params.unet
  before = params()
  assert pipe.load_lora(path, 0.5) == "style"
  half = params()
  pipe.set_lora_scale(1.0, "style")
  whole = params()
  assert pipe.loras["style"].scale == 1.0
  engine = pipe._adapted.engine(GenerationRequest())[1]
  assert engine._params.unet is whole
  gaps = [distance(before, each) for each in (half, whole)]
  np.testing.assert_allclose(gaps[1], 2 * gaps[0], rtol=1e-3)
  with pytest.raises(ConfigError, match="is loaded; give another name"):
    pipe.load_lora(path, name="style")
  assert pipe.load_lora(path) == "style_1"
  with pytest.raises(ConfigError, match="there are style, style_1"):
    pipe.unload_lora("other")
  pipe.unload_lora()
  assert distance(before, params()) == 0 and not pipe.loras


def distance(a, b):
  import jax

  gaps = jax.tree.map(lambda x, y: float(np.abs(x - y).sum()), a, b)
  return sum(jax.tree.leaves(gaps))


def test_a_model_is_opened_from_a_folder_or_a_file(
  pipe,
  folder,  # noqa: F811
  file,  # noqa: F811
  clip_prompts,  # noqa: F811
  tmp_path,
):
  alone = Pipeline.from_single_file(file, tokenizer=clip_prompts[0])
  ours, theirs = (
    pixels(each("a fox", sampler="euler", seed=1, guidance=2.0, **SIZE))
    for each in (pipe, alone)
  )
  assert np.abs(ours.astype(int) - theirs).max() <= 1
  with pytest.raises(ConfigError, match="from_single_file"):
    Pipeline.from_pretrained(file)
  with pytest.raises(ConfigError, match="there is no file"):
    Pipeline.from_single_file(folder)
  with pytest.raises(ConfigError, match="is not a run"):
    Pipeline.from_run(tmp_path)


def test_an_inverted_image_is_latents_for_a_later_request(pipe):
  fields = {"prompt": "a fox", "guidance": 1.0} | SIZE
  noise = pipe(image=IMAGE, invert=True, output="latents", **fields).images
  assert noise.shape == (1, 8, 8, 4)
  result = pipe(initial_latents=noise, **fields)
  assert result.images[0].size == (16, 16)
  request = dataclasses.replace(result.request, seed=7)
  np.testing.assert_array_equal(pixels(pipe(request)), pixels(result))
