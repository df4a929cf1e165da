# %% [markdown]
# # Measure
#
# Metrics are functions of arrays, and `evaluate` applies them to runs and
# folders.

# %%
import pathlib

import jax.numpy as jnp
import numpy as np
from PIL import Image

import ldm_jax
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.evaluation.metrics.psnr import psnr
from ldm_jax.evaluation.metrics.ssim import ssim

glyphs = Glyphs(level=0, split="validation")
images = np.stack([glyphs[i]["image"] for i in range(8)])
rng = np.random.default_rng(0)
noised = np.clip(images + rng.normal(0, 8, images.shape), 0, 255)
noised = np.round(noised).astype(np.uint8)
scale = lambda x: np.float32(x) / 127.5 - 1
print("PSNR, dB", np.round(psnr(scale(images), scale(noised)).mean(), 2))
print(
  "SSIM", np.round(ssim(jnp.asarray(images), jnp.asarray(noised)).mean(), 3)
)

# %% [markdown]
# The same from folders of images, pairs by name.

# %%
for name, arrays in (("restored", noised), ("original", images)):
  folder = pathlib.Path("notebook") / name
  folder.mkdir(parents=True, exist_ok=True)
  for i, array in enumerate(arrays):
    Image.fromarray(array).save(folder / f"{i}.png")
request = ldm_jax.EvaluationRequest(
  "notebook/restored", "notebook/original", paired=True
)
result = ldm_jax.evaluate(request)
missing = [n for n, v in result.metrics.items() if v == "unavailable"]
print(sorted(set(result.metrics) - set(missing)))

# %% [markdown]
# FID, KID, precision and recall need Inception's weights, which are not
# downloaded: `inception=FILE`. What is missing is "unavailable", never
# replaced by something else.

# %%
print(sorted(missing)[:3])

# %% [markdown]
# A metric of your own is a function of two sequences of images.


# %%
def brightness(samples, reference):
  """Mean grey levels."""
  found = {"brightness": float(np.mean([image.mean() for image in samples]))}
  if reference is not None:
    others = np.mean([image.mean() for image in reference])
    found["brightness_difference"] = found["brightness"] - float(others)
  return found


result = ldm_jax.evaluate(
  ldm_jax.EvaluationRequest(
    "notebook/restored", "notebook/original", paired=True, metrics=(brightness,)
  )
)
print(round(result.metrics["brightness_difference"], 2))
