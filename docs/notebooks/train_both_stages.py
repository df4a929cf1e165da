# %% [markdown]
# # Train both stages
#
# On the data set that comes with the package. The overrides make both networks
# tiny, so that this notebook runs in seconds; without them these are the
# configs of `make quickstart`.

# %%
import pathlib

import ldm_jax
from ldm_jax.runtime.monitoring.metric_writer import read_metrics

small = {
  "data.batch": "8",
  "data.held_out": "16",
  "data.threads": "1",
  "reports.every": "5",
  "reports.previews_every": "0",
  "task.optimizer.muon": "none",
}
first = small | {
  "steps": "30",
  "task.optimizer.decay_steps": "100",
  "task.autoencoder.trunk.channels": "8",
  "task.autoencoder.trunk.multipliers": "1,2",
  "task.autoencoder.trunk.groups": "4",
}
result = ldm_jax.train("quickstart_autoencoder", "notebook/ae", overrides=first)
print("steps", result.step)

# %% [markdown]
# A run is a folder; its losses are lines of JSON.

# %%
losses = [
  line["loss"] for line in read_metrics("notebook/ae") if "loss" in line
]
print([round(loss) for loss in losses])
assert losses[-1] < losses[0]

# %% [markdown]
# Stage two freezes that autoencoder.

# %%
second = small | {
  "first_stage": "notebook/ae",
  "steps": "10",
  "task.optimizer.decay_steps": "100",
  "task.model.unet.channels": "16",
  "task.model.unet.groups": "4",
  "task.model.unet.multipliers": "1,",
  "task.model.unet.attention.depths": "1,",
}
result = ldm_jax.train("quickstart_text", "notebook/text", overrides=second)
print("steps", result.step)

# %% [markdown]
# Calling `train` again returns at once: the run is complete. With more steps
# it resumes, bit for bit as if it had never stopped.

# %%
more = ldm_jax.train(
  "quickstart_text", "notebook/text", overrides=second | {"steps": "12"}
)
print("steps", more.step)

# %% [markdown]
# Sample. After a dozen steps there is nothing to see; after `make quickstart`
# there is.

# %%
pipe = ldm_jax.Pipeline.from_run("notebook/text")
result = pipe(prompt="a large red circle", num=2, steps=5, guidance=2.0)
print(result.images[0].size, sorted(result.metadata[0])[:4])
print(len(list(pathlib.Path("notebook/text").iterdir())), "entries in the run")
