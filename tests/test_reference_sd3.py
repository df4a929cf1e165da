"""Stable Diffusion 3 compared with diffusers' StableDiffusion3Pipeline.

All weights are random and small.
"""

import clip_tokenizer
import jax
import numpy as np
import pytest
import t5_files
from test_reference_mmdit import random_weights
from test_reference_t5 import clip_encoder, t5_encoder

import ldm_jax
from ldm_jax.pretrained.convert import ConvertRequest, convert
from ldm_jax.pretrained.open_model import open_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
safetensors_torch = pytest.importorskip("safetensors.torch")
single_file_utils = pytest.importorskip("diffusers.loaders.single_file_utils")

pytestmark = pytest.mark.slow

TEXTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
NETWORKS = ("transformer", "vae", *TEXTS)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  torch.manual_seed(0)
  folder = tmp_path_factory.mktemp("tokenizers")
  sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(100))]
  vae = diffusers.AutoencoderKL(
    block_out_channels=(32, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    latent_channels=4,
    scaling_factor=1.5305,
    shift_factor=0.0609,
    use_quant_conv=False,
    use_post_quant_conv=False,
  )
  transformer = diffusers.SD3Transformer2DModel(
    sample_size=8,
    in_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=32,
    caption_projection_dim=16,
    pooled_projection_dim=24,
    out_channels=4,
    pos_embed_max_size=6,
    dual_attention_layers=(0,),
    qk_norm="rms_norm",
  )
  pipe = diffusers.StableDiffusion3Pipeline(
    random_weights(transformer),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    random_weights(vae),
    clip_encoder(12, "quick_gelu", 8),
    clip_tokenizer.tokenizer(folder / "raw"),
    clip_encoder(16, "gelu", 16),
    clip_tokenizer.tokenizer(folder / "raw", pad="!"),
    t5_encoder(),
    transformers.T5Tokenizer(vocab=t5_files.PIECES + sentinels),
  )
  pipe.set_progress_bar_config(disable=True)
  return pipe


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("sd3") / "pipeline")
  pipeline.save_pretrained(path)
  return path


def latents_of(pipe):
  return pipe(
    "a red fox in the snow",
    negative_prompt="the cat",
    height=8,
    width=16,
    num_inference_steps=10,
    guidance_scale=4.0,
    generator=torch.Generator().manual_seed(5),
    output_type="latent",
  ).images


@pytest.mark.parametrize("has_t5", [True, False])
def test_ten_steps_with_guidance(pipeline, folder, tmp_path, has_t5):
  """Of an image that is not square; a missing T5 is zeros."""
  if not has_t5:
    parts = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = diffusers.StableDiffusion3Pipeline(**pipeline.components | parts)
    pipeline.set_progress_bar_config(disable=True)
    folder = str(tmp_path / "without")
    pipeline.save_pretrained(folder)
  expected = latents_of(pipeline).movedim(1, -1).numpy()
  noise = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(5))
  ours = ldm_jax.Pipeline.from_pretrained(folder)
  found = ours(
    "a red fox in the snow",
    negative_prompt="the cat",
    height=8,
    width=16,
    steps=10,
    guidance=4.0,
    initial_latents=noise.movedim(1, -1).numpy(),
    output="latents",
    compat="diffusers",
  ).images
  scale = np.abs(expected).max()
  error = np.abs(np.asarray(found) - expected).max() / scale
  assert error <= 2e-3


def assert_same_tensors(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name, tensor in theirs.items():
    torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_a_written_folder_is_read_by_diffusers(pipeline, folder, tmp_path):
  assert open_model(folder).guidance == 7.0
  path = str(tmp_path / "again")
  convert(ConvertRequest(folder, path))
  again = diffusers.StableDiffusion3Pipeline.from_pretrained(path)
  for name in NETWORKS:
    one, other = (getattr(pipe, name) for pipe in (again, pipeline))
    assert_same_tensors(one.state_dict(), other.state_dict())
  assert again.scheduler.config.shift == 3.0
  texts = ["a red fox in the snow", "cats"]
  for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
    one, other = (
      getattr(pipe, name)(texts, padding="max_length", max_length=20)
      for pipe in (again, pipeline)
    )
    assert one["input_ids"] == other["input_ids"]


def test_a_single_file_has_the_names_of_stability(pipeline, folder, tmp_path):
  """By diffusers' own conversion of them."""
  path = str(tmp_path / "sd3.safetensors")
  convert(ConvertRequest(folder, path, single_file=True))
  tensors = safetensors_torch.load_file(path)
  theirs = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(
    dict(part_of(tensors, "model.diffusion_model."))
  )
  assert_same_tensors(theirs, pipeline.transformer.state_dict())
  for name, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
    found = dict(part_of(tensors, f"text_encoders.{key}.transformer."))
    ours = {n.removeprefix("text_model."): x for n, x in found.items()}
    expected = {
      n.removeprefix("text_model."): x
      for n, x in getattr(pipeline, name).state_dict().items()
      if not n.endswith("position_ids")
    }
    assert_same_tensors(ours, expected)
  found = single_file_utils.convert_sd3_t5_checkpoint_to_diffusers(tensors)
  assert found.keys() <= pipeline.text_encoder_3.state_dict().keys()
  loaded, again = open_model(folder), open_model(path)
  assert again.model.unet == loaded.model.unet
  assert again.sampler_config == loaded.sampler_config
  jax.tree.map(
    np.testing.assert_array_equal,
    (again.params.unet, again.params.conditioners),
    (loaded.params.unet, loaded.params.conditioners),
  )


def part_of(tensors, prefix):
  for name, tensor in tensors.items():
    if name.startswith(prefix):
      yield name.removeprefix(prefix), tensor
