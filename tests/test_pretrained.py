"""Models in published formats: written, read, sampled, refused."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import prompts, stable_diffusion

import ldm_jax
from ldm_jax.cli import convert, info, sample
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.diffusion.torch_noise import torch_normal
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import skip_last_blocks
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained import save_pretrained as saving
from ldm_jax.pretrained.configs.scheduler_config import sampler_config, schedule
from ldm_jax.pretrained.controlnet import with_controlnet
from ldm_jax.pretrained.convert import ConvertRequest, ConvertResult
from ldm_jax.pretrained.convert import convert as convert_model
from ldm_jax.pretrained.inspect import inspect
from ldm_jax.pretrained.lora.module_names import modules
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.sampling.conditioning import ConditionInputs, encode_conditions
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.naming.convert import revert
from ldm_jax.weights.naming.convert import shapes as shapes_of
from ldm_jax.weights.naming.parameter_names import name_table
from ldm_jax.weights.safetensors_files import write_safetensors

SIDE = 32
PROMPT = "a red fox in the snow"


@pytest.fixture(scope="module")
def clip_prompts(tmp_path_factory):
  """A tokenizer of CLIP's kind: its folder, and as `ClipPrompts`."""
  folder = tmp_path_factory.mktemp("tokenizer")
  return str(folder), prompts(folder)


@pytest.fixture(scope="module")
def model(clip_prompts):
  """A small Stable Diffusion 1: eight heads, 32 groups, two levels."""
  return stable_diffusion(clip_prompts[1])


@pytest.fixture(scope="module")
def folder(model, clip_prompts, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("saved") / "model")
  ldm_jax.save_pretrained(
    *model, path, tokenizer=clip_prompts[1], image_size=16
  )
  return path


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("single") / "model.safetensors")
  ldm_jax.save_single_file(*model, path)
  return path


def same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_folder_is_read_as_it_was_written(model, folder):
  found, params = ldm_jax.from_pretrained(folder)
  made, expected = model
  assert found.unet == made.unet and found.first_stage == made.first_stage
  assert found.conditioners == made.conditioners
  assert found.schedule == made.schedule
  same(params, expected)


SAMPLERS = {
  "lcm": {"_class_name": "LCMScheduler", "original_inference_steps": 100},
  "euler": {
    "_class_name": "EulerDiscreteScheduler",
    "timestep_spacing": "trailing",
  },
  "karras": {
    "_class_name": "DPMSolverMultistepScheduler",
    "lambda_min_clipped": float("-inf"),  # as diffusers writes it
    "use_karras_sigmas": True,
  },
  "zero": {
    "_class_name": "DDIMScheduler",
    "clip_sample": False,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
  },
}


@pytest.mark.parametrize(
  "name",
  [
    name if name == "karras" else pytest.param(name, marks=pytest.mark.slow)
    for name in SAMPLERS
  ],
)
def test_conversions_carry_the_sampler(model, clip_prompts, tmp_path, name):
  """From folder to folder, to a single file, and back."""
  made, params = model
  read = SAMPLERS[name] | {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
  }
  noise, prediction = schedule(read)
  made = dataclasses.replace(made, schedule=noise, prediction=prediction)
  paths = [str(tmp_path / each) for each in ("a", "b", "c.safetensors", "d")]
  prompts = clip_prompts[1]
  ldm_jax.save_pretrained(
    made, params, paths[0], tokenizer=prompts, scheduler=read
  )
  convert_model(ConvertRequest(paths[0], paths[1]))
  convert_model(ConvertRequest(paths[1], paths[2], single_file=True))
  options = LoadOptions(tokenizer=clip_prompts[0])
  convert_model(ConvertRequest(paths[2], paths[3], options=options))
  for path in (paths[0], paths[1], paths[3]):
    folder = pathlib.Path(path)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", read["_class_name"]]
    file = folder / "scheduler" / "scheduler_config.json"
    assert json.loads(file.read_text()).items() >= read.items()
  loaded = open_model(paths[3], LoadOptions())
  assert loaded.sampler_config == sampler_config(read)
  assert (loaded.model.schedule, loaded.model.prediction) == (noise, "v")


def test_a_single_autoencoder_is_one_line(model, folder):
  vae, params = ldm_jax.from_pretrained(folder, subfolder="vae")
  images = jax.random.uniform(jax.random.key(4), (2, 16, 24, 3), minval=-1)
  encode = jax.jit(lambda p, x: vae.apply(p, x, method="encode"))
  made, expected = model
  same(encode(params, images), jax.jit(made.encode)(expected, images))


def test_a_single_file_is_read_as_it_was_written(model, file, clip_prompts):
  found, params = ldm_jax.from_single_file(file)
  same(params, model[1])
  assert found.unet == model[0].unet
  loaded = open_model(file, LoadOptions(tokenizer=clip_prompts[0]))
  (part,) = loaded.model.conditioners
  # Such a file does not hold the end token, which is then the largest id.
  encoders = tuple(e.clone(end=None) for e in model[0].conditioners[0].encoders)
  assert part == model[0].conditioners[0].clone(encoders=encoders)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_rounded_once(model, tmp_path, dtype):
  """Written, read and written again: the same bytes."""
  made, params = model
  ldm_jax.save_pretrained(
    made.unet, params.unet, str(tmp_path / "a"), dtype=dtype
  )
  unet, found = ldm_jax.from_pretrained(str(tmp_path / "a"), dtype="float32")
  cast = saving.DTYPES[dtype]
  rounded = jax.tree.map(
    lambda x: np.asarray(x).astype(cast).astype(np.float32), params.unet
  )
  same(found, rounded)
  ldm_jax.save_pretrained(unet, found, str(tmp_path / "b"), dtype=dtype)
  name = "diffusion_pytorch_model.safetensors"
  first, second = ((tmp_path / x / name).read_bytes() for x in "ab")
  assert first == second
  half, stored = ldm_jax.from_pretrained(str(tmp_path / "a"), dtype="bfloat16")
  assert half.dtype == "bfloat16"
  assert {x.dtype.name for x in jax.tree.leaves(stored)} == {"bfloat16"}


def test_the_average_of_a_single_file_is_optional(model, file, tmp_path):
  tensors = read_tensors(file)
  prefix = "model.diffusion_model."
  both = {name: tensors[name] for name in tensors}
  for name in tensors:
    if name.startswith(prefix):
      flat = name.removeprefix("model.").replace(".", "")
      both[f"model_ema.{flat}"] = 2 * tensors[name]
  both["model_ema.decay"] = np.float32([0.9999])
  path = str(tmp_path / "both.safetensors")
  write_safetensors(path, both)
  same(ldm_jax.from_single_file(path)[1].unet, model[1].unet)
  _, params = ldm_jax.from_single_file(path, weights="ema")
  same(params.unet, jax.tree.map(lambda x: 2 * x, model[1].unet))
  same(params.first_stage, model[1].first_stage)
  with pytest.raises(ValueError, match="0 averages"):
    ldm_jax.from_single_file(file, weights="ema")


def test_a_folder_of_the_former_flax_models(model, folder, tmp_path):
  """diffusers' Flax classes wrote their own names with Flax's layouts."""
  shutil.copytree(folder, tmp_path / "model")
  made, params = model
  parts = {
    "unet": (made.unet, params.unet, "diffusion", "unet", ""),
    "vae": (
      made.first_stage,
      params.first_stage,
      "diffusion",
      "autoencoder",
      "",
    ),
    "text_encoder": (
      made.conditioners[0].encoders[0],
      {
        "params": params.conditioners["tokens"]["params"]["encoders_0"],
      },
      "",
      "clip",
      "text_model/",
    ),
  }
  for name, (_, variables, stem, network, prefix) in parts.items():
    where = tmp_path / "model" / name
    for old in where.glob("*.safetensors"):
      old.unlink()
    shapes = shapes_of(variables["params"])
    found = revert(name_table(network, "flax", shapes), variables["params"])
    flat = {tuple(f"{prefix}{k}".split("/")): v for k, v in found.items()}
    tree = flax.traverse_util.unflatten_dict(flat)
    stem = f"{stem}_flax_model" if stem else "flax_model"
    data = flax.serialization.msgpack_serialize(tree)
    (where / f"{stem}.msgpack").write_bytes(data)
  same(ldm_jax.from_pretrained(str(tmp_path / "model"))[1], params)


def test_shards_are_one_network(model, tmp_path):
  made, params = model
  path = str(tmp_path / "shards")
  saving.save_pretrained(made.unet, params.unet, path, max_shard_bytes=300_000)
  assert len(os.listdir(path)) > 3
  same(ldm_jax.from_pretrained(path)[1], params.unet)


def test_existing_files_are_not_overwritten(model, folder, file):
  with pytest.raises(FileExistsError, match="choose another"):
    saving.save_pretrained(*model, folder)
  with pytest.raises(FileExistsError, match="choose another"):
    saving.save_single_file(*model, file)


def test_what_the_format_cannot_hold_is_refused_by_name(model, tmp_path):
  made, params = model
  octaves = dataclasses.replace(made, unet=made.unet.clone(octaves=2))
  with pytest.raises(ValueError, match="octaves=2"):
    saving.save_pretrained(octaves, params, str(tmp_path / "x"))


class OtherBackbone(nn.Module):
  """A network that is not a U-Net."""

  size_multiple: int = 1

  def __call__(self, xt, t, condition):
    return xt


class OtherUNet(UNet):
  """A user-defined backbone."""


class OtherEmbedder(ClipEmbedder):
  """A user-defined conditioner."""


class OtherFirstStage(Autoencoder):
  """A user-defined first stage."""


def other_classes(made):
  """A model with one user-defined class, by that class's name."""
  fields = {"parent", "name"}
  values = lambda m: {
    f.name: getattr(m, f.name)
    for f in dataclasses.fields(m)
    if f.name not in fields
  }
  replaced = lambda **parts: dataclasses.replace(made, **parts)
  embedder = OtherEmbedder(**values(made.conditioners[0]))
  return {
    "OtherUNet": replaced(unet=OtherUNet(**values(made.unet))),
    "OtherEmbedder": replaced(conditioners=(embedder,)),
    "OtherFirstStage": replaced(
      first_stage=OtherFirstStage(**values(made.first_stage))
    ),
  }


@pytest.mark.parametrize(
  "name", ["OtherUNet", "OtherEmbedder", "OtherFirstStage"]
)
def test_exporting_a_user_class_is_an_error(model, tmp_path, name):
  other = other_classes(model[0])[name]
  path = tmp_path / "x"
  for save in (saving.save_pretrained, saving.save_single_file):
    with pytest.raises(ConfigError, match=name) as stop:
      save(other, model[1], str(path))
    assert "\n" not in str(stop.value) and not path.exists()


def test_loras_and_controlnets_are_refused_for_other_backbones(folder):
  loaded = open_model(folder)
  model = dataclasses.replace(loaded.model, unet=OtherBackbone())
  other = dataclasses.replace(loaded, model=model)
  with pytest.raises(ConfigError, match="backbone of class OtherBackbone"):
    modules(other)
  with pytest.raises(ConfigError, match="this model has a OtherBackbone"):
    with_controlnet(other, "control")


def test_convert_is_one_call(folder, tmp_path):
  request = ConvertRequest(
    folder, str(tmp_path / "x.safetensors"), dtype="fp16", single_file=True
  )
  result = convert_model(request)
  assert result == ConvertResult(request.target, "single_file")
  assert inspect(result.path)["family"] == "sd1"
  with pytest.raises(ConfigError, match="exists already"):
    convert_model(request)


@pytest.mark.parametrize(
  ("options", "line"),
  [
    ({"dtype": "fp8"}, "must be one of fp32, fp16, bf16"),
    ({"lora": "sgm"}, "must be one of kohya, peft"),
    ({"shard_gigabytes": 0.0}, "must be above 0, got 0"),
    ({"options": LoadOptions(lora=("a",))}, "merges no LoRAs"),
  ],
)
def test_wrong_convert_requests_are_refused(options, line):
  with pytest.raises(ConfigError, match=line):
    ConvertRequest("a", "b", **options)


@pytest.mark.parametrize(
  ("options", "line"),
  [
    ({"dtype": "int8"}, "must be one of float32, bfloat16, float16"),
    ({"weights": "best"}, "'raw' or 'ema'"),
    ({"prediction": "noise"}, "'eps', 'v', 'x0' or 'flow'"),
    ({"lora": "style.safetensors"}, "must be a list"),
  ],
)
def test_wrong_load_options_are_refused(options, line):
  with pytest.raises(ConfigError, match=line):
    LoadOptions(**options)


def test_long_prompts_are_chunks_and_both_sides_have_as_many(folder):
  loaded = open_model(folder)
  long = " ".join(["fox"] * 100)
  request = ConditionInputs([long, PROMPT], [None, "cat"], None, SIDE, SIDE)
  positive, negative = encode_conditions(loaded, request)
  assert positive.raw["tokens"].shape == (2, 1, 154)
  assert negative.raw["tokens"].shape == (2, 1, 154)
  tokenizer = loaded.tokenizer.syntaxes[0].tokenizer.backend
  begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
  row = positive.raw["tokens"][0, 0]
  assert (row[[0, 77]] == begin).all() and (row[[76, 153]] == end).all()
  fox = tokenizer.convert_tokens_to_ids("fox</w>")
  assert (row == fox).sum() == 100
  arrays = jax.tree.map(jnp.asarray, positive)
  condition = jax.jit(loaded.model.condition)(
    loaded.params, arrays.raw, arrays.is_null
  )
  assert condition.context.shape == (2, 154, 64)


def generate(capsys, *flags):
  code = sample.main([*flags, "--steps", "3", "-H", "16", "-W", "16"])
  assert code == 0
  return capsys.readouterr().out.split()


def test_latents_of_torch_are_those_given_as_a_file(folder, tmp_path, capsys):
  common = [f"--model={folder}", "--prompt", PROMPT, "--num", "3"]
  common += ["--output", "latent", "--guidance", "2"]
  (one,) = generate(
    capsys, *common, "--rng=torch", "--seed=5", "--out", str(tmp_path / "a")
  )
  noise = torch_normal(5, (3, 4, 8, 8)).transpose(0, 2, 3, 1)
  np.save(tmp_path / "noise.npy", noise)
  given = f"--initial_latents={tmp_path / 'noise.npy'}"
  (two,) = generate(
    capsys, *common, given, "--batch=2", "--out", str(tmp_path / "b")
  )
  first, second = np.load(one), np.load(two)
  assert first.shape == (3, 8, 8, 4)
  np.testing.assert_allclose(first, second, atol=1e-5)
  assert np.abs(first - noise).max() > 0.1


def test_images_from_a_folder(folder, tmp_path, capsys):
  paths = generate(
    capsys, f"--model={folder}", "--prompt", PROMPT, "--out", str(tmp_path)
  )
  assert [os.path.basename(p) for p in paths] == ["00000.png", "grid.png"]
  assert info.main([paths[0]]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["kind"] == "image" and found["size"] == [16, 16]
  assert found["prompt"] == PROMPT and found["guidance"] == 7.5


def test_an_image_holds_its_settings_as_other_programs_read_them(
  folder, tmp_path, capsys
):
  flags = [f"--model={folder}", "--prompt", PROMPT, "--out", str(tmp_path)]
  flags += ["--seed=0", "--guidance=3.5", "--clip_skip=2"]
  flags += ["--negative_prompt", "blue, wet"]
  image = Image.open(generate(capsys, *flags)[0])
  first, second, settings = image.text["parameters"].split("\n")
  assert first == PROMPT and second == "Negative prompt: blue, wet"
  pairs = dict(pair.split(": ") for pair in settings.split(", "))
  assert pairs.pop("Version").startswith("ldm_jax ")
  assert pairs == {
    "Steps": "3",
    "Sampler": "DDIM",
    "CFG scale": "3.5",
    "Seed": "0",
    "Size": "16x16",
    "Model": "model",
    "Clip skip": "2",
  }


def test_info_describes_a_folder_and_a_file(model, folder, file, capsys):
  count = sum(x.size for x in jax.tree.leaves(model[1].unet))
  for path in (folder, file):
    assert info.main([path]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prediction"] == "eps"
    assert found["networks"]["unet"]["parameters"] == count
    assert found["networks"]["unet"]["dtype"] == {"float32": count}
  assert found["family"] == "sd1"


def test_folder_file_folder_is_the_same_bytes(
  folder, clip_prompts, tmp_path, capsys
):
  middle, end = str(tmp_path / "x.safetensors"), str(tmp_path / "end")
  assert convert.main([folder, middle, "--single_file"]) == 0
  back = [middle, end, f"--tokenizer={clip_prompts[0]}", f"--config={folder}"]
  assert convert.main(back) == 0
  for part in ("unet", "vae"):
    name = f"{part}/diffusion_pytorch_model.safetensors"
    first, second = (pathlib.Path(f, name).read_bytes() for f in (folder, end))
    assert first == second
  assert os.path.exists(f"{end}/tokenizer/tokenizer.json")


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--model=nowhere/at/all"], "no run, file or folder 'nowhere"),
    (["--model={folder}", "--class_label=1"], "is not conditioned on classes"),
    (["--model={folder}", "--height=15"], "multiple of 2"),
    (["--model={folder}", "--variant=fp16"], "no weights of variant 'fp16'"),
    (["--model={file}", "--prompt=a"], "comes without a tokenizer"),
    (["--model={folder}", "--rng=torch", "--eta=1"], "this sampler draws more"),
    (["--model={folder}", "--initial_latents=no.npy"], "no.npy"),
    (["--model={folder}", "--initial_latents={wrong}"], "1 images of .* need"),
    (["--model={folder}", "--clip_skip=0"], "cannot be skipped"),
    (["--model={folder}", "--clip_skip=99"], "cannot be skipped"),
    (["--model={file}", "--variant=fp16"], "is a single file"),
    (["--model={folder}", "--weights=ema"], "own configs say what it holds"),
    (["--model={folder}/vae"], "has no unet"),
  ],
)
def test_wrong_requests_are_one_line(flags, line, folder, file, tmp_path):
  wrong = str(tmp_path / "wrong.npy")
  np.save(wrong, np.ones((1, 3, 3, 4), np.float32))
  paths = {"folder": folder, "file": file, "wrong": wrong}
  flags = [flag.format(**paths) for flag in flags]
  with pytest.raises(CommandError, match=line) as stop:
    sample.main([*flags, "--out", str(tmp_path / "out")])
  assert stop.value.code in (2, 5) and "\n" not in str(stop.value)
  assert not (tmp_path / "out").exists()


def test_skipping_a_block_equals_an_encoder_with_one_less(folder):
  loaded = open_model(folder)
  request = ConditionInputs(["a red fox"], [None], None, 16, 16)
  conditioning, _ = encode_conditions(loaded, request)
  (ours,) = skip_last_blocks(loaded, 1).model.conditioners
  (part,) = loaded.model.conditioners
  (encoder,) = part.encoders
  fewer = part.clone(encoders=(encoder.clone(depth=encoder.depth - 1),))
  variables = loaded.params.conditioners["tokens"]
  arrays = [
    jnp.asarray(x["tokens"]) for x in (conditioning.raw, conditioning.is_null)
  ]
  found, expected, whole = (
    module.apply(variables, *arrays).context for module in (ours, fewer, part)
  )
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert np.abs(found - whole).max() > 1e-3


def test_importing_the_package_does_not_import_jax():
  code = "import ldm_jax, sys; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
  assert "from_pretrained" in dir(ldm_jax)
