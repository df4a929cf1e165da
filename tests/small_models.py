"""A folder with small models under the paths that the documentation names.

path/to/model       a diffusers folder, Stable Diffusion 1 in small
path/to/tokenizer   its tokenizer
model.safetensors   the same as one file; style.safetensors a LoRA of it,
                    token.safetensors a textual inversion
runs/ae, runs/text  runs of both stages on the glyphs, at their last step;
                    runs/glyphs_autoencoder, runs/glyphs_text the same
PHOTOS, OTHERS      folders of two classes of images with captions
samples, real       folders of two images
"""

import pathlib
import shutil

import clip_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
from networks import random_like, random_variables
from PIL import Image
from untrained import untrained

import ldm_jax
from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.lora import LoRA
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained.lora.export import save_lora
from ldm_jax.weights.safetensors_files import write_safetensors

PROMPT = "a red fox"
ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = ROOT / "configs"

# Overrides that make the glyphs' experiments small.
DATA = {
  "data.batch": "8",
  "data.held_out": "8",
  "data.threads": "1",
  "data.validation.size": "16",
  "reports.every": "1",
  "reports.previews_every": "0",
}
ONE = DATA | {
  "task.autoencoder.trunk.channels": "8",
  "task.autoencoder.trunk.multipliers": "1,2",
  "task.autoencoder.trunk.groups": "4",
}
TWO = DATA | {
  "task.model.unet.channels": "16",
  "task.model.unet.groups": "4",
  "task.model.unet.multipliers": "1,",
  "task.model.unet.attention.depths": "1,",
  "task.optimizer.muon": "none",
  "task.preview_steps": "2",
}
TEXT = TWO | {
  "task.model.conditioners.0.encoder.width": "16",
  "task.model.conditioners.0.encoder.depth": "1",
}


def prompts(folder: pathlib.Path) -> ClipPrompts:
  """A tokenizer of CLIP's kind, written to a folder."""
  clip_tokenizer.tokenizer(folder).save_pretrained(folder)
  loaded = tokenizers.load(folder, 77)
  return ClipPrompts((PromptSyntax(loaded, loaded.backend.pad_token_id),))


def stable_diffusion(clip_prompts: ClipPrompts):
  """(model, parameters): eight heads, 32 groups, two levels; random."""
  tokenizer = clip_prompts.syntaxes[0].tokenizer.backend
  encoder = ClipText(
    len(tokenizer), 64, 2, 1, hidden=80, end=tokenizer.eos_token_id
  )
  embedder = ClipEmbedder(
    (encoder,),
    paddings=(tokenizer.pad_token_id,),
    begin=tokenizer.bos_token_id,
    end=tokenizer.eos_token_id,
  )
  model = LatentDiffusion(
    Autoencoder(ConvStack(32, (1, 1), 1), 4),
    UNet(4, 32, (1, 1), 1, AttentionPlan((1, 0), heads=8)),
    (embedder,),
  )
  key = jax.random.key(0)
  ids = jnp.asarray(clip_prompts.encode([PROMPT]))
  trained = random_like(
    jax.eval_shape(lambda: model.init(key, {"tokens": ids}, (1, 8, 8, 4)))
  )
  image, noise = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 4))
  return model, Parameters(
    random_variables(model.first_stage, image, noise, seed=1),
    jnp.float32(0.18215),
    trained["conditioners"],
    trained["unet"],
  )


def write_published(root: pathlib.Path) -> None:
  """The diffusers folder, the single file, a LoRA and a token."""
  clip_prompts = prompts(root / "path/to/tokenizer")
  model, params = stable_diffusion(clip_prompts)
  folder = str(root / "path/to/model")
  ldm_jax.save_pretrained(
    model, params, folder, tokenizer=clip_prompts, image_size=16
  )
  ldm_jax.save_single_file(model, params, str(root / "model.safetensors"))
  loaded, lora = ldm_jax.open_model(folder), LoRA(2)
  base = {"unet": params.unet, "conditioners": params.conditioners}
  factors = jax.tree.map(np.asarray, lora.init(jax.random.key(1), base))
  path = str(root / "style.safetensors")
  save_lora(loaded, lora, factors, path, "kohya")
  vector = np.ones((1, 64), np.float32)
  write_safetensors(str(root / "token.safetensors"), {"emb_params": vector})


def write_runs(root: pathlib.Path) -> None:
  """Runs of both stages, whose parameters are as they were initialised."""
  runs = root / "runs"
  flags = lambda values: [f"--config.{k}={v}" for k, v in values.items()]
  untrained(CONFIGS / "glyphs_autoencoder.py", runs / "ae", flags(ONE))
  two = flags(TEXT | {"first_stage": str(runs / "ae")})
  untrained(CONFIGS / "glyphs_text.py", runs / "text", two)
  shutil.copytree(runs / "ae", runs / "glyphs_autoencoder")
  shutil.copytree(runs / "text", runs / "glyphs_text")


def write_photographs(root: pathlib.Path) -> None:
  """Two classes of random images, with captions."""
  rng = np.random.default_rng(0)
  for name, count in (("PHOTOS", 8), ("OTHERS", 4)):
    for kind in ("cats", "dogs"):
      folder = root / name / kind
      folder.mkdir(parents=True)
      for number in range(count):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04}.png")
        (folder / f"{number:04}.txt").write_text("a red fox")


def write_samples(root: pathlib.Path) -> None:
  """Two folders of plain images of the same names."""
  for name, level in (("samples", 100), ("real", 101)):
    (root / name).mkdir()
    for number in range(2):
      image = Image.new("RGB", (32, 32), (level, number, 0))
      image.save(root / name / f"{number}.png")


def write(root: pathlib.Path) -> pathlib.Path:
  """Everything; returns the folder."""
  write_published(root)
  write_runs(root)
  write_photographs(root)
  write_samples(root)
  return root
