"""Live comparisons with diffusers and transformers: small random configs."""

import inspect
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import autoencoder_shapes, text_shapes, unet_shapes
from published_configs import blocks

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.pretrained.configs import defaults
from ldm_jax.pretrained.configs.autoencoder_config import (
  autoencoder,
  autoencoder_config,
)
from ldm_jax.pretrained.configs.scheduler_config import (
  schedule,
  schedule_config,
)
from ldm_jax.pretrained.configs.scheduler_defaults import SCHEDULERS
from ldm_jax.pretrained.configs.text_encoder_config import (
  clip,
  clip_config,
  text,
  text_config,
)
from ldm_jax.pretrained.configs.unet_reader import inputs, unet
from ldm_jax.pretrained.configs.unet_writer import unet_config
from ldm_jax.weights.naming.convert import convert
from ldm_jax.weights.naming.parameter_names import name_table

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

SEEDS = range(2)


def size(sizes):
  return sum(math.prod(shape) for shape in sizes.values())


def count(model):
  return sum(parameter.numel() for parameter in model.parameters())


def to_json(config):
  return json.loads(json.dumps(config))


def whole(model):
  """The config that it would save: every key is there."""
  config = {"_class_name": type(model).__name__} | dict(model.config)
  return to_json(config)


def make(config):
  """diffusers' network of a config, every tensor random."""
  model = getattr(diffusers, config["_class_name"]).from_config(config).eval()
  for name, parameter in model.named_parameters():
    is_scale = "norm" in name and name.endswith("weight")
    drawn = torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5
    parameter.data = drawn + float(is_scale)
  return model


def ours(model, network, shapes):
  tensors = {name: t.numpy() for name, t in model.state_dict().items()}
  names = name_table(network, "diffusers", shapes)
  return {"params": jax.tree.map(jnp.asarray, convert(names, tensors))}


def levels(rng):
  """Widths of two or three levels, and which of them attend."""
  number = int(rng.integers(2, 4))
  multiples = [1, *sorted(rng.integers(1, 4, number - 1))]
  attends = [bool(a) for a in rng.integers(0, 2, number)]
  return [16 * int(m) for m in multiples], attends


def conditional(seed, kind):
  """A random config like that of SD 1, SD 2, SDXL or the x4 upscaler."""
  rng = np.random.default_rng(seed)
  widths, attends = levels(rng)
  config = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": int(rng.integers(3, 6)),
    "out_channels": 4,
    "block_out_channels": widths,
    "layers_per_block": int(rng.integers(1, 3)),
    "cross_attention_dim": 12,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
    **blocks(attends),
  }
  if kind != "sd1":
    config |= {
      "attention_head_dim": [width // 8 for width in widths],
      "use_linear_projection": True,
    }
  if kind == "sdxl":
    config |= {
      "addition_embed_type": "text_time",
      "addition_time_embed_dim": 6,
      "projection_class_embeddings_input_dim": 6 * 6 + 5,
      "transformer_layers_per_block": [*range(1, len(widths) + 1)],
    }
  if kind == "x4":
    config |= {"attention_head_dim": 4, "num_class_embeds": 7}
    config["only_cross_attention"] = [True] * (len(widths) - 1) + [False]
  return config


def answer(model, config, xt, t, context, labels):
  """diffusers' output, and the vector that ldm_jax's U-Net takes instead."""
  extra, vector = {}, None
  if config["_class_name"] == "UNet2DConditionModel":
    extra["encoder_hidden_states"] = torch.tensor(context)
  if config.get("num_class_embeds"):
    vector = np.eye(config["num_class_embeds"], dtype=np.float32)[labels]
    extra["class_labels"] = torch.tensor(labels)
  if config.get("addition_embed_type"):
    pooled = torch.randn(len(xt), 5)
    sizes = torch.randint(1, 99, (len(xt), 6))
    extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    waves = model.add_time_proj(sizes.flatten()).reshape(len(xt), -1)
    vector = torch.cat([pooled, waves], -1).numpy()
  nchw = torch.tensor(xt.transpose(0, 3, 1, 2))
  with torch.no_grad():
    out = model(nchw, torch.tensor(t), **extra).sample
  return out.numpy().transpose(0, 2, 3, 1), vector


def check_unet(config):
  """Sizes and outputs agree, and diffusers reads the written configs."""
  theirs, module, fed = make(config), unet(config), inputs(config)
  shapes = unet_shapes(module, fed.channels, fed.context, fed.vector)
  assert size(shapes) == count(theirs)
  assert unet(whole(theirs)) == module
  written = to_json(unet_config(module, fed))
  again = type(theirs).from_config(written)
  again.load_state_dict(theirs.state_dict())  # every name, every shape
  rng = np.random.default_rng()
  xt = rng.normal(size=(2, 8, 8, fed.channels)).astype(np.float32)
  t = rng.integers(0, 1000, 2).astype(np.float32)
  context = rng.normal(size=(2, 3, fed.context or 1)).astype(np.float32)
  expected, vector = answer(again.eval(), written, xt, t, context, [1, 6])
  params = ours(theirs, "unet", shapes)
  condition = Condition(context if fed.context else None, None, vector)
  found = jax.jit(module.apply)(params, xt, t, condition)
  spread = np.abs(expected).max()
  np.testing.assert_allclose(found / spread, expected / spread, atol=2e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl", "x4"])
def test_conditional_unets(kind, seed):
  check_unet(conditional(seed, kind))


@pytest.mark.parametrize("resampling", ["conv", "resnet"])
@pytest.mark.parametrize("modulation", ["default", "scale_shift"])
@pytest.mark.parametrize("head_width", [8, None])
def test_unconditional_unets(head_width, modulation, resampling):
  rng = np.random.default_rng()
  widths, attends = levels(rng)
  bare = ["DownBlock2D", "UpBlock2D"]
  if resampling == "resnet":
    bare = ["ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"]
  check_unet(
    {
      "_class_name": "UNet2DModel",
      "sample_size": 8,
      "block_out_channels": widths,
      "norm_num_groups": 8,
      "attn_norm_num_groups": 8,
      "attention_head_dim": head_width,
      "layers_per_block": int(rng.integers(1, 3)),
      "resnet_time_scale_shift": modulation,
      "downsample_type": resampling,
      "upsample_type": resampling,
      "num_class_embeds": 7 if rng.integers(2) else None,
      **blocks(attends, ["AttnDownBlock2D", "AttnUpBlock2D"], bare),
    }
  )


def test_a_list_of_head_widths_does_not_pass_in_diffusers():
  """diffusers must not misread the list of head widths for LSUN churches."""
  config = {"_class_name": "UNet2DModel", "attention_head_dim": [28] * 4}
  with pytest.raises(TypeError):
    make(config)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_autoencoders(kind, seed):
  rng = np.random.default_rng(seed)
  widths, attends = levels(rng)
  names = ["AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"]
  bare = ["DownEncoderBlock2D", "UpDecoderBlock2D"]
  config = {
    "_class_name": kind,
    "block_out_channels": widths,
    "latent_channels": int(rng.integers(2, 5)),
    "layers_per_block": int(rng.integers(1, 3)),
    "mid_block_add_attention": bool(rng.integers(2)),
    "norm_num_groups": 8,
    **blocks(attends, names, bare),
  }
  theirs, (module, scale) = make(config), autoencoder(config)
  shapes = autoencoder_shapes(module)
  assert size(shapes) == count(theirs)
  assert autoencoder(whole(theirs)) == (module, scale)
  assert scale == theirs.config.scaling_factor
  written = autoencoder_config(module, scaling_factor=scale, sample_size=32)
  again = type(theirs).from_config(to_json(written)).eval()
  again.load_state_dict(theirs.state_dict())
  images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
  with torch.no_grad():
    seen = again.encode(torch.tensor(images.transpose(0, 3, 1, 2)))
    mode = seen.latents if kind == "VQModel" else seen.latent_dist.mode()
    out = again.decode(mode).sample.numpy().transpose(0, 2, 3, 1)
  params = ours(theirs, "autoencoder", shapes)
  posterior = module.apply(params, jnp.asarray(images), method="encode")
  expected = mode.numpy().transpose(0, 2, 3, 1)
  np.testing.assert_allclose(posterior.mode(), expected, atol=2e-5)
  found = module.apply(params, jnp.asarray(expected), method="decode")
  np.testing.assert_allclose(found, out, atol=1e-4)


@pytest.mark.parametrize("projection", [None, 9])
def test_text_encoders(projection):
  name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
  theirs = transformers.CLIPTextConfig(
    vocab_size=64,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=11,
    hidden_act="gelu",
    projection_dim=projection or 1,
    eos_token_id=5,
    architectures=[name],
  )
  encoder = clip(theirs.to_dict())
  model = getattr(transformers, name)
  assert size(text_shapes(encoder)) == count(model(theirs))
  read = transformers.CLIPTextConfig.from_dict(to_json(clip_config(encoder)))
  model(read).load_state_dict(model(theirs).state_dict())
  assert clip(read.to_dict()) == encoder


def test_ldms_text_encoder():
  from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion

  there = pipeline_latent_diffusion
  theirs = there.LDMBertConfig(64, 11, 2, 96, 3, 8, d_model=24)
  encoder = text(theirs.to_dict())
  logits = 24 * 64 + 64  # were for training
  model = there.LDMBertModel(theirs)
  assert size(text_shapes(encoder)) == count(model) - logits
  read = there.LDMBertConfig.from_dict(to_json(text_config(encoder)))
  there.LDMBertModel(read).load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_silent_schedulers(name):
  if name == "DPMSolverSDEScheduler":
    pytest.importorskip("torchsde")
  theirs = getattr(diffusers, name)()
  made, _ = schedule({"_class_name": name})
  expected = theirs.alphas_cumprod.numpy()
  np.testing.assert_allclose(made.alpha_bar, expected, rtol=2e-4)
  assert schedule(whole(theirs))[0] == made


@pytest.mark.parametrize("betas", ["scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("is_rescaled", [False, True])
def test_a_written_schedule_is_read_by_diffusers(betas, is_rescaled):
  made, _ = schedule(
    {
      "_class_name": "DDIMScheduler",
      "beta_schedule": betas,
      "num_train_timesteps": 200,
      "prediction_type": "v_prediction",
      "rescale_betas_zero_snr": is_rescaled,
    }
  )
  theirs = diffusers.DDIMScheduler.from_config(schedule_config(made, "v"))
  assert theirs.config.prediction_type == "v_prediction"
  expected = theirs.alphas_cumprod.numpy()
  np.testing.assert_allclose(made.alpha_bar, expected, atol=2e-6)


@pytest.mark.parametrize("schema", [
  defaults.CONDITIONAL, defaults.UNCONDITIONAL, defaults.KL, defaults.VQ,
], ids=lambda schema: schema.kind)  # fmt: skip
def test_schemas_have_diffusers_defaults(schema):
  """And keys that ldm_jax does not list have null or false as default."""
  kind = getattr(diffusers, schema.kind)
  parameters = dict(inspect.signature(kind.__init__).parameters)
  del parameters["self"]
  for key in schema.defaults.keys() | schema.demands.keys():
    default = parameters.pop(key).default
    allowed = schema.demands.get(key, (schema.defaults.get(key),))
    assert default in allowed, key
  for key in parameters.keys() - {*schema.passive}:
    assert parameters[key].default in (None, False), key
