"""Small models, and LoRA files of every form for them."""

import functools
import json
import re

import numpy as np
from networks import random_params, text_shapes, unet_shapes
from single_files import SD1, SDXL, SIZES, TINY_CLIP, TINY_G, TINY_VAE

from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import SizeEmbedder

# ours: (diffusers' name, sgm's name), of a U-Net of two levels, the finer one
# of which attends; counted by hand.
UNET = {
  "time_1/kernel": ("time_embedding.linear_1", "time_embed.0"),
  "conv_in/kernel": ("conv_in", "input_blocks.0.0"),
  "down_0_attention_0/proj_in/kernel": (
    "down_blocks.0.attentions.0.proj_in",
    "input_blocks.1.1.proj_in",
  ),
  **{
    f"down_0_attention_0/block_0/{ours}/kernel": (
      f"down_blocks.0.attentions.0.transformer_blocks.0.{theirs}",
      f"input_blocks.1.1.transformer_blocks.0.{theirs}",
    )
    for ours, theirs in (
      ("attention1/q", "attn1.to_q"),
      ("attention2/k", "attn2.to_k"),
      ("attention2/out", "attn2.to_out.0"),
    )
  },
  "down_0_downsample/kernel": (
    "down_blocks.0.downsamplers.0.conv",
    "input_blocks.2.0.op",
  ),
  "down_1_block_0/shortcut/kernel": (
    "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks.3.0.skip_connection",
  ),
  "mid_block_1/conv1/kernel": (
    "mid_block.resnets.1.conv1",
    "middle_block.2.in_layers.2",
  ),
  "mid_attention/block_0/ff/up/kernel": (
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "middle_block.1.transformer_blocks.0.ff.net.0.proj",
  ),
  "up_1_upsample/kernel": (
    "up_blocks.0.upsamplers.0.conv",
    "output_blocks.1.1.conv",
  ),
  "up_0_block_1/emb/kernel": (
    "up_blocks.1.resnets.1.time_emb_proj",
    "output_blocks.3.0.emb_layers.1",
  ),
  "conv_out/kernel": ("conv_out", "out.2"),
}
VECTOR = {"vector_2/kernel": ("add_embedding.linear_2", "label_emb.0.2")}
TEXT_ENCODER = {
  "block_0/attention/q/kernel": "text_model.encoder.layers.0.self_attn.q_proj",
  "block_1/attention/out/kernel": (
    "text_model.encoder.layers.1.self_attn.out_proj"
  ),
  "block_1/up/kernel": "text_model.encoder.layers.1.mlp.fc1",
}
PROJECTION = {"projection/kernel": "text_projection"}
RANK, ALPHA = 3, 6.0  # a power of two, so scaling is exact


def assembled(unet, inputs, encoders, sizes=(), tokenizer=None):
  """A `LoadedModel` with random parameters and defaults for all else."""
  conditioners = {
    "tokens": {
      "params": {
        f"encoders_{i}": random_params(text_shapes(encoder), i)
        for i, encoder in enumerate(encoders)
      }
    }
  }
  count = len(encoders)
  embedder = ClipEmbedder(encoders, (0,) * count, (39,) * count)
  return LoadedModel(
    model=LatentDiffusion(TINY_VAE, unet, (embedder, *sizes)),
    params=Parameters(
      {"params": {"encoder": np.ones(3)}},
      np.float32(0.2),
      conditioners | {part.input_key: {} for part in sizes},
      {"params": random_params(unet_shapes(unet, *inputs), 9)},
    ),
    tokenizer=tokenizer,
    height=16,
    width=16,
  )


@functools.cache
def family(name):
  """(model, U-Net's names, text encoders' names)."""
  if name == "sd1":
    return assembled(SD1, (4, 64), (TINY_CLIP,)), UNET, [TEXT_ENCODER]
  encoders, sizes = (TINY_CLIP, TINY_G), (SizeEmbedder(width=16),)
  model = assembled(SDXL, SIZES, encoders, sizes)
  return model, UNET | VECTOR, [TEXT_ENCODER, TEXT_ENCODER | PROJECTION]


def leaf(loaded, place):
  node = {
    "unet": loaded.params.unet["params"],
    **{
      f"text_encoder{'_2' * i}": encoder
      for i, encoder in enumerate(
        loaded.params.conditioners["tokens"]["params"].values()
      )
    },
  }
  for name in "/".join(place).split("/"):
    node = node[name]
  return node


def spelled(name):
  """(network, ours): diffusers' and sgm's names."""
  _, unet, encoders = family(name)
  found = {("unet", ours): theirs for ours, theirs in unet.items()}
  for i, encoder in enumerate(encoders):
    part = f"text_encoder{'_2' * i}"
    found |= {(part, ours): (theirs,) * 2 for ours, theirs in encoder.items()}
  return found


@functools.cache
def factors(name):
  """(down, up) as torch would have them, for every matrix that is spelled."""
  rng, found = np.random.default_rng(3), {}
  for place in spelled(name):
    *window, i, o = leaf(family(name)[0], place).shape
    down = rng.normal(size=(RANK, i, *window)).astype(np.float32)
    up = rng.normal(size=(o, RANK, *[1] * len(window))).astype(np.float32)
    found[place] = down, up
  return found


def kohya(part, module, count):
  numbers = {"text_encoder": "1" if count > 2 else "", "text_encoder_2": "2"}
  start = f"lora_te{numbers[part]}_" if part in numbers else "lora_unet_"
  start += module.replace(".", "_")
  return f"{start}.lora_down.weight", f"{start}.lora_up.weight"


def peft(part, module, _):
  start = f"{part}.{module}"
  return f"{start}.lora_A.weight", f"{start}.lora_B.weight"


def wrapped(*module):
  return tuple(f"base_model.model.{name}" for name in peft(*module))


def processors(part, module, _):
  """diffusers' before it had peft."""
  start = f"{part}.{module}"
  place, _, last = module.rpartition(".")
  if ".attn" in module:
    word = re.match("to_(q|k|v|out)", module.rpartition("attn")[2][2:])[0]
    place = module[: module.rindex(word) - 1]
    start = f"{part}.{place}.processor.{word}_lora"
  elif "self_attn" in module:
    start = f"{part}.{place}.to_{last.removesuffix('_proj')}_lora"
  else:
    start += ".lora" if part == "unet" else ".lora_linear_layer"
  return f"{start}.down.weight", f"{start}.up.weight"


def bare(*module):
  names = processors(*module)
  return tuple(name.removeprefix("unet.") for name in names)


# form: (names, which spelling, where alpha is)
FORMS = {
  "kohya": (kohya, 0, "tensor"),
  "sgm": (kohya, 1, "tensor"),
  "peft": (peft, 0, "metadata"),
  "wrapped peft": (wrapped, 0, "metadata"),
  "processors": (processors, 0, None),
  "bare processors": (bare, 0, None),
}


def file_of(name, form, scale=ALPHA / RANK):
  """Tensors and metadata of a LoRA in that form."""
  make, which, alpha_in = FORMS[form]
  tensors, config, places = {}, {}, spelled(name)
  count = len({part for part, _ in places})
  for (part, ours), theirs in places.items():
    down, up = factors(name)[part, ours]
    names = make(part, theirs[which], count)
    factor = scale if alpha_in is None else 1.0
    tensors |= {names[0]: down, names[1]: up * np.float32(factor)}
    if alpha_in == "tensor":
      alpha = names[0].replace("lora_down.weight", "alpha")
      tensors[alpha] = np.float16(scale * RANK)
    elif alpha_in == "metadata":
      config[f"{part}.lora_alpha"] = scale * RANK
  return tensors, {
    "lora_adapter_metadata": json.dumps(config)
  } if config else {}
