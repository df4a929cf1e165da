"""FLUX in diffusers' folders and in its authors' files, in and out."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from networks import random_like, random_variables

import ldm_jax
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.diffusion.shift import DynamicShift
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import GaussianBottleneck
from ldm_jax.nn.conditioners.spatial import MaskedImage
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.latent_normalization import LatentNormalization
from ldm_jax.pretrained.configs.concat_inputs import concat_conditioners
from ldm_jax.pretrained.configs.unet_reader import Inputs
from ldm_jax.pretrained.convert import ConvertRequest, convert
from ldm_jax.pretrained.flux.flux_config import FLUX, flux, flux_config
from ldm_jax.pretrained.flux.folder import scheduler
from ldm_jax.pretrained.inspect import inspect
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.text.families import TextEncoders, flux_conditioners
from ldm_jax.weights.safetensors_files import (
  read_safetensors,
  write_safetensors,
)

CLIP = ClipText(vocabulary=60, width=10, depth=1, heads=2, length=77, end=59)
T5 = T5Encoder(40, 12, 1, 2, 4, 16, 8)
NETWORK = Flux(16, 16, 1, 1, 2, (2, 2, 4))
MODEL = LatentDiffusion(
  Autoencoder(
    ConvStack(32, (1, 1), 1),
    16,
    bottleneck=GaussianBottleneck(),
    has_quant_conv=False,
    normalization=LatentNormalization((0.1159,)),
  ),
  NETWORK,
  tuple(flux_conditioners(TextEncoders((CLIP,), (49407,), T5), 12, 10)),
  Schedule("rectified_flow"),
  "flow",
)
IDS = {
  "tokens": jnp.zeros((1, 1, 77), int),
  "t5_tokens": jnp.zeros((1, 512), int),
}


@pytest.fixture(scope="module")
def params():
  key = jax.random.key(0)
  trained = random_like(
    jax.eval_shape(lambda: MODEL.init(key, IDS, (1, 4, 4, 16)))
  )
  image, latents = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4, 4, 16))
  return Parameters(
    random_variables(MODEL.first_stage, image, latents, seed=1),
    jnp.float32(0.3611),
    trained["conditioners"],
    trained["unet"],
  )


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("flux") / "folder")
  options = {"scheduler": scheduler(True), "max_shard_bytes": 20_000}
  ldm_jax.save_pretrained(MODEL, params, path, **options)
  return path


def assert_equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def tensors_of(folder):
  files = pathlib.Path(folder, "transformer").glob("*.safetensors")
  return {
    name: tensor
    for file in files
    for name, tensor in read_safetensors(str(file)).items()
  }


def test_a_folder_comes_back_bit_for_bit(params, folder, tmp_path):
  """In several files of weights, with an index."""
  assert len([*pathlib.Path(folder, "transformer").glob("*.safetensors")]) > 1
  loaded = open_model(folder)
  assert loaded.model == MODEL and not loaded.warnings
  assert loaded.guidance == 3.5
  assert loaded.sampler_config.timestep_spacing == "trailing"
  assert isinstance(loaded.sampler_config.shift, DynamicShift)
  assert (loaded.height, loaded.width) == (256, 256)
  assert_equal(loaded.params, params)
  again = str(tmp_path / "again")
  convert(ConvertRequest(folder, again))
  assert_equal(tensors_of(folder), tensors_of(again))
  for name in ("transformer/config.json", "model_index.json"):
    first, second = (pathlib.Path(f, name) for f in (folder, again))
    assert json.loads(first.read_text()) == json.loads(second.read_text())


def test_schnell_has_no_guidance_and_shorter_texts(params, folder, tmp_path):
  short = flux_conditioners(TextEncoders((CLIP,), (49407,), T5), 12, 10, 256)
  model = dataclasses.replace(
    MODEL,
    unet=NETWORK.clone(embeds_guidance=False),
    conditioners=tuple(short),
  )
  own = dict(params.unet["params"])
  unet = {"params": {n: v for n, v in own.items() if "guidance" not in n}}
  path = str(tmp_path / "schnell")
  ldm_jax.save_pretrained(model, params.replace(unet=unet), path)
  loaded = open_model(path)
  assert loaded.model == model and loaded.guidance == 1.0
  assert loaded.sampler_config.shift == 1.0


def test_what_the_pipeline_cannot_hold_is_refused(params, tmp_path):
  target = str(tmp_path / "target")
  longer = (*MODEL.conditioners[:1], MODEL.conditioners[1].clone(length=99))
  for conditioners in (MODEL.conditioners[:1], longer):
    other = dataclasses.replace(MODEL, conditioners=conditioners)
    with pytest.raises(ConfigError, match="512 tokens of a T5"):
      ldm_jax.save_pretrained(other, params, target)
  half = NETWORK.clone(flow_steps=500)
  with pytest.raises(ConfigError, match="flow_steps=500"):
    other = dataclasses.replace(
      MODEL, unet=half, schedule=Schedule("rectified_flow", steps=500)
    )
    ldm_jax.save_pretrained(other, params, target)


def test_the_folder_of_another_pipeline_is_refused(folder, tmp_path):
  """Kontext's transformer has FLUX.1-dev's config.json."""
  shutil.copytree(folder, copy := tmp_path / "kontext")
  index = json.loads((copy / "model_index.json").read_text())
  index["_class_name"] = "FluxKontextPipeline"
  (copy / "model_index.json").write_text(json.dumps(index))
  with pytest.raises(ConfigError, match="Kontext, which edits images"):
    open_model(str(copy))
  ldm_jax.from_pretrained(str(copy), subfolder="vae")


def test_a_transformer_alone_comes_back(params, tmp_path):
  """With the channels of a masked image and a mask."""
  own = dict(params.unet["params"])
  own["patches"] = own["patches"] | {"kernel": np.ones((384, 16), np.float32)}
  path = str(tmp_path / "fill")
  ldm_jax.save_pretrained(NETWORK, {"params": own}, path)
  config = json.loads(pathlib.Path(path, "config.json").read_text())
  assert (config["in_channels"], config["out_channels"]) == (384, 64)
  module, found = ldm_jax.from_pretrained(path)
  assert module == NETWORK
  assert_equal(found["params"], own)


@pytest.mark.parametrize(
  "key, value",
  [
    ("patch_size", 2),
    ("in_channels", 6),
    ("out_channels", 7),
    ("num_layers", -1),
    ("num_single_layers", 10**6),
    ("num_attention_heads", "2"),
    ("axes_dims_rope", [16, 56, 57]),
    ("guidance_embeds", 1),
    ("image_proj", "ip"),
  ],
)
def test_other_keys_are_refused_by_name(key, value):
  config = {"_class_name": FLUX.kind, key: value}
  with pytest.raises(ConfigError, match=key.removesuffix("_dims_rope")):
    flux(config)


def test_the_published_configs_are_read():
  """Of black-forest-labs/FLUX.1-dev, -schnell and -Fill-dev."""
  config = {
    "_class_name": "FluxTransformer2DModel",
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
  }
  assert flux(config) == Flux()
  schnell = flux(config | {"guidance_embeds": False})
  assert schnell == Flux(embeds_guidance=False)
  fill = config | {"in_channels": 384, "out_channels": 64}
  assert flux(fill) == Flux()
  sizes = {"patches": 384, "context": 4096, "vector_1": 768}
  params = {
    name: {"kernel": np.zeros((size, 1), np.float32)}
    for name, size in sizes.items()
  }
  written = flux_config(Flux(), params)
  assert written.items() >= fill.items()


def test_channels_after_the_latents_are_of_a_published_model():
  """Of Fill, of Depth and Canny; others are refused."""
  own = lambda channels: concat_conditioners(
    {}, Inputs(channels, is_flux=True), 16, 8
  )
  assert own(16) == []
  assert own(96) == [MaskedImage("flux")]
  (control,) = own(32)
  assert control.is_scaled and not control.has_unconditional
  with pytest.raises(ConfigError, match="reads 17 channels"):
    own(33)


def test_controlnets_are_refused_by_name(tmp_path):
  config = {"_class_name": "FluxControlNetModel"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ConfigError, match="FluxControlNetModel"):
    ldm_jax.from_pretrained(str(tmp_path))


@pytest.fixture(scope="module")
def file(params, tmp_path_factory):
  """A whole model, as ComfyUI reads it."""
  path = str(tmp_path_factory.mktemp("flux") / "model.safetensors")
  ldm_jax.save_single_file(MODEL, params, path, scheduler=scheduler(True))
  return path


CONFIG = {
  "unet": {"axes_dims_rope": [2, 2, 4]},
  "text_encoder": {"num_attention_heads": 2},
}


def copied(file, path, change):
  """The file without metadata, its tensors changed."""
  tensors = {n: np.array(x) for n, x in read_safetensors(file).items()}
  change(tensors)
  write_safetensors(path, tensors)
  return path


def test_a_whole_file_comes_back_bit_for_bit(params, file, tmp_path):
  """What its tensors do not show of so small a model is in its metadata."""
  tensors = read_safetensors(file)
  for name in (
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
    "model.diffusion_model.single_blocks.0.linear1.weight",
    "vae.decoder.conv_in.weight",
    "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight",
    "text_encoders.t5xxl.transformer.shared.weight",
  ):
    assert name in tensors
  loaded = open_model(file)
  assert loaded.model == MODEL and loaded.guidance == 3.5
  assert isinstance(loaded.sampler_config.shift, DynamicShift)
  assert_equal(loaded.params, params)
  again = str(tmp_path / "again.safetensors")
  convert(ConvertRequest(file, again, single_file=True))
  assert_equal(dict(tensors), dict(read_safetensors(again)))


def test_a_file_is_detected_by_names_and_shapes(params, file, tmp_path):
  """With tensors that ComfyUI adds, and keys that shapes do not show."""

  def change(tensors):
    tensors["text_encoders.clip_l.logit_scale"] = np.ones((), np.float32)
    tensors["text_encoders.t5xxl.logit_scale"] = np.ones((), np.float32)

  path = copied(file, str(tmp_path / "a.safetensors"), change)
  model, found = ldm_jax.from_single_file(path, config=CONFIG)
  (clip,) = model.conditioners[0].encoders
  assert clip == CLIP.clone(end=clip.end)  # the largest id, in such a file
  assert model.conditioners[1] == MODEL.conditioners[1]
  assert (model.unet, model.first_stage) == (NETWORK, MODEL.first_stage)
  assert (model.schedule, model.prediction) == (MODEL.schedule, "flow")
  assert found.latent_scale == np.float32(0.3611)
  assert_equal(found.unet, params.unet)
  with pytest.raises(WeightsError, match="axes_dims_rope"):
    open_model(path)


def test_a_missing_clip_is_zeros_and_named(folder, tmp_path, caplog):
  path = tmp_path / "model"
  shutil.copytree(folder, path)
  index = json.loads((path / "model_index.json").read_text())
  index |= {"text_encoder": [None, None]}
  (path / "model_index.json").write_text(json.dumps(index))
  (line,) = open_model(str(path)).warnings
  assert line.startswith("the model has no text_encoder (CLIP), for which zero")
  assert line in caplog.messages and inspect(str(path))["notices"] == [line]
  texts = [f"{folder}/text_encoder"]
  whole = open_model(str(path), LoadOptions(text_encoder=texts))
  assert whole.model == MODEL and not whole.warnings
  with pytest.raises(ConfigError, match=r"no CLIP text.*--text_encoder"):
    open_model(str(path), LoadOptions(tokenizer=str(tmp_path)))


def test_the_authors_file_takes_the_other_networks(
  params, file, folder, tmp_path
):
  """Black Forest Labs' holds the transformer alone, in bfloat16."""
  start = "model.diffusion_model."

  def change(tensors):
    for name in [*tensors]:
      own = tensors.pop(name)
      if name.startswith(start) and "guidance_in" not in name:
        name = name.removeprefix(start)
        tensors[name] = own.astype(ml_dtypes.bfloat16)

  path = copied(file, str(tmp_path / "flux1-schnell.safetensors"), change)
  alone, _ = ldm_jax.from_single_file(path, config=CONFIG)
  texts = [f"{folder}/{name}" for name in ("text_encoder", "text_encoder_2")]
  options = {"vae": f"{folder}/vae", "text_encoder": texts}
  model, found = ldm_jax.from_single_file(path, config=CONFIG, **options)
  assert alone == model.unet == NETWORK.clone(embeds_guidance=False)
  assert model.conditioners[1].length == 256
  found = found.unet["params"]["single_0"]["up"]["kernel"]
  expected = params.unet["params"]["single_0"]["up"]["kernel"]
  np.testing.assert_array_equal(
    found, np.asarray(expected).astype(ml_dtypes.bfloat16).astype(np.float32)
  )


def test_weights_in_eight_bits_are_scaled(params, file, tmp_path):
  """As ComfyUI stores them, with a number for every matrix."""
  name = "model.diffusion_model.double_blocks.0.img_mlp.0."
  small = ml_dtypes.float8_e4m3fn

  def change(tensors):
    tensors[f"{name}weight"] = tensors[f"{name}weight"].astype(small)
    tensors[f"{name}scale_weight"] = np.asarray(0.5, np.float32)
    tensors["model.diffusion_model.scaled_fp8"] = np.zeros(2, small)

  path = copied(file, str(tmp_path / "fp8.safetensors"), change)
  _, found = ldm_jax.from_single_file(path, config=CONFIG)
  of = lambda p: p.unet["params"]["double_0"]["image"]["up"]["kernel"]
  expected = np.asarray(of(params)).astype(small).astype(np.float32) / 2
  np.testing.assert_array_equal(of(found), expected)


@pytest.mark.parametrize(
  "name, shape, message",
  [
    ("controlnet_blocks.0.weight", (2, 2), "a ControlNet of FLUX"),
    ("model.diffusion_model.distilled_guidance_layer.a", (2,), "Chroma"),
    ("model.diffusion_model.double_stream_modulation_img.a", (2,), "FLUX.2"),
    ("model.diffusion_model.img_in.weight", (16,), "not those of FLUX.1"),
    ("model.diffusion_model.img_in.weight", (17, 64), "17 rows"),
    ("another.weight", (2, 2), "another.weight"),
    ("model.diffusion_model.another.weight", (2, 2), "another.weight"),
  ],
)
def test_other_tensors_are_refused(file, tmp_path, name, shape, message):
  put = lambda tensors: tensors.update({name: np.zeros(shape, np.float32)})
  path = copied(file, str(tmp_path / "other.safetensors"), put)
  with pytest.raises(WeightsError, match=message):
    ldm_jax.from_single_file(path, config=CONFIG)


def test_another_prediction_is_refused(file, tmp_path):
  path = copied(file, str(tmp_path / "a.safetensors"), lambda _: None)
  with pytest.raises(WeightsError, match="predicts 'flow'"):
    open_model(path, LoadOptions(prediction="v"))
