# %% [markdown]
# # Fine-tune with LoRA
#
# Low-rank factors of kernels are trained; the model itself stays as it is. By
# default they are those of the attention layers, here all of the U-Net.
# `runs/text` is a run of stage two, here a tiny one; a diffusers folder would
# do as well.

# %%
import jax
import numpy as np

import ldm_jax
from ldm_jax import config
from ldm_jax.nn.lora import LoRA
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape

base = Run.open("runs/text").experiment
experiment = config.override(
  base,
  {
    "start": "runs/text",
    "steps": "4",
    "task.lora": "LoRA",
    "task.lora.rank": "2",
    "task.lora.where": "^unet/.*kernel$",
    "task.optimizer.rate": "1e-2",
    "task.optimizer.warmup": "0",
    "data.source.palette": "soft",
    "data.validation.palette": "soft",
  },
)
assert experiment.task.lora == LoRA(rank=2, where="^unet/.*kernel$")
result = ldm_jax.train(experiment, "notebook/lora")
print("steps", result.step)

# %% [markdown]
# What was trained are the factors.

# %%
run = Run.open("notebook/lora")
factors = run.trained(MeshShape().build())
names = {
  path[-1].key for path, _ in jax.tree_util.tree_flatten_with_path(factors)[0]
}
print(sorted(names))

# %% [markdown]
# The run is sampled like any other. In its pipeline the factors are merged.

# %%
tuned = ldm_jax.Pipeline.from_run("notebook/lora")
plain = ldm_jax.Pipeline.from_run("runs/text")
request = ldm_jax.GenerationRequest(
  prompt="a large red circle", steps=3, output="latents"
)
change = np.abs(tuned(request).images - plain(request).images).max()
assert change > 0
print("the images differ")

# %% [markdown]
# A published LoRA is loaded into a pipeline, scaled and removed again; none of
# these compiles anything.

# %%
pipe = ldm_jax.Pipeline.from_pretrained("path/to/model")
before = pipe(prompt="a red fox", steps=2, output="numpy").images
name = pipe.load_lora("style.safetensors", scale=0.8)
pipe.set_lora_scale(0.4, name)
pipe.unload_lora(name)
after = pipe(prompt="a red fox", steps=2, output="numpy").images
assert np.array_equal(before, after)
print("without it the weights are what they were, bit for bit")

# %% [markdown]
# `ldm-jax convert RUN style.safetensors --lora kohya` writes the factors of a
# run that started from Stable Diffusion for other programs:
# [fine-tuning](../finetuning.md).
