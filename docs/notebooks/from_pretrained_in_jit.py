# %% [markdown]
# # Published weights inside your own jit
#
# `from_pretrained` gives Flax Linen modules and their parameters: pure
# functions that you may differentiate, vectorize, shard and compile. `folder`
# is a diffusers folder, or `owner/model` of the hub.

# %%
import jax
import jax.numpy as jnp

import ldm_jax
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance

folder = "path/to/model"
vae, vae_params = ldm_jax.from_pretrained(folder, subfolder="vae")
print(type(vae).__name__, "stride", vae.stride)

# %% [markdown]
# Encode and decode. Images are [b h w 3] in [-1, 1]; the noise of the
# posterior is yours.


# %%
@jax.jit
def reconstruct(params, images, key):
  posterior = vae.apply(params, images, method="encode")
  noise = jax.random.normal(key, posterior.mode().shape)
  return vae.apply(params, posterior.sample(noise), method="decode")


images = jnp.zeros((2, 16, 16, 3))
print(reconstruct(vae_params, images, jax.random.key(0)).shape)

# %% [markdown]
# A whole model: its parts share one tree of parameters.

# %%
loaded = ldm_jax.open_model(folder)
model, params = loaded.model, loaded.params
ids = jnp.asarray(loaded.tokenizer.encode(["a red fox", ""]))
kept = {"tokens": jnp.zeros(2, bool)}
condition = model.condition(params, {"tokens": ids}, kept)
print("context", condition.context.shape)

# %% [markdown]
# A guided sampler, compiled as one program. The table of the sampler is an
# argument: another sampler with as many rows compiles nothing.


# %%
@jax.jit
def generate(params, condition, table, keys):
  split = lambda i: jax.tree.map(lambda x: x[i : i + 1], condition)
  denoise = model.guided_denoiser(
    params, split(1), split(0), ClassifierFreeGuidance(5.0)
  )
  noise = samplers.initial_noise(keys, (8, 8, 4))
  latents = samplers.sample(denoise, noise, table, keys)
  return model.decode(params, latents)


keys = samplers.image_keys(jax.random.key(0), jnp.arange(1))
for name in ("ddim", "dpmpp_2m"):
  plan = samplers.SamplerConfig(6, name, "leading").plan(model.schedule)
  print(name, generate(params, condition, plan.table, keys).shape)
print("programs:", generate._cache_size())

# %% [markdown]
# Gradients pass through all of it, such as those of an image with respect to
# its latents.

# %%
brightness = lambda latents: model.decode(params, latents).mean()
gradient = jax.jit(jax.grad(brightness))(jnp.zeros((1, 8, 8, 4)))
print(gradient.shape, bool(jnp.isfinite(gradient).all()))
