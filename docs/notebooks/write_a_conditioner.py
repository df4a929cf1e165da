# %% [markdown]
# # Write a conditioner
#
# A conditioner is a Linen module over one array of the batch, that returns its
# part of the `Condition` and knows its own unconditional value. This one reads
# a colour. The model diffuses pixels of tiny images, so that it learns in
# seconds.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.loss import DenoisingLoss, sample_times
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.unet import AttentionPlan, UNet


class ColorEmbedder(nn.Module):
  """The mean colour [b 3] of an image, added to the time embedding."""

  width: int = 16
  input_key: str = "color"
  drop_rate: float = 0.1
  has_unconditional = True
  is_frozen = False

  @nn.compact
  def __call__(self, color, drop):
    null = self.param("null", nn.initializers.normal(1.0), (self.width,))
    vector = nn.Dense(self.width, name="out")(color)
    return Condition(vector=jnp.where(drop[:, None], null, vector))


model = LatentDiffusion(
  first_stage=PixelSpace(),
  unet=UNet(
    3, 16, (1, 2), 1, AttentionPlan((0, 0), kind="plain"), "mlp", groups=4
  ),
  conditioners=(ColorEmbedder(),),
  schedule=Schedule("rectified_flow"),
  prediction="flow",
)
shape = (32, 8, 8, 3)
trained = jax.jit(
  lambda: model.init(jax.random.key(0), {"color": jnp.zeros((32, 3))}, shape)
)()
print(sum(leaf.size for leaf in jax.tree.leaves(trained)), "parameters")

# %% [markdown]
# A training step: Ho and Salimans (2022), algorithm 1. The images are plain
# colours with a little noise.

# %%
loss = DenoisingLoss(model.prediction)
optimizer = optax.adam(3e-3)


def parameters(trained):
  return Parameters(None, 1.0, trained["conditioners"], trained["unet"])


def mean_loss(trained, key):
  keys = jax.random.split(key, 5)
  color = jax.random.uniform(keys[0], (32, 3), minval=-1)
  x0 = color[:, None, None] + 0.1 * jax.random.normal(keys[1], shape)
  drop = {"color": jax.random.bernoulli(keys[2], 0.1, (32,))}
  condition = model.condition(parameters(trained), {"color": color}, drop)
  network = lambda xt, t: model.predict(parameters(trained), xt, t, condition)
  t = sample_times(keys[3], model.schedule, 32)
  noise = jax.random.normal(keys[4], shape)
  return loss(model.schedule, network, x0, t, noise).mean()


@jax.jit
def step(trained, state, key):
  value, gradient = jax.value_and_grad(mean_loss)(trained, key)
  change, state = optimizer.update(gradient, state)
  return optax.apply_updates(trained, change), state, value


state, values = optimizer.init(trained), []
for number in range(200):
  trained, state, value = step(
    trained, state, jax.random.fold_in(jax.random.key(1), number)
  )
  values.append(value)
first, last = jnp.stack(values[:20]).mean(), jnp.stack(values[-20:]).mean()
assert last < first / 2
print("the loss fell to less than half")

# %% [markdown]
# Sample with guidance: the colour is followed.

# %%
colors = jnp.array([[0.8, -0.8, -0.8], [-0.8, 0.8, -0.8], [-0.8, -0.8, 0.8]])


@jax.jit
def generate(trained, colors, keys):
  params, count = parameters(trained), len(colors)
  encode = lambda drop: model.condition(
    params, {"color": colors}, {"color": jnp.full(count, drop)}
  )
  denoise = model.guided_denoiser(
    params, encode(True), encode(False), ClassifierFreeGuidance(1.5)
  )
  plan = samplers.SamplerConfig(12, "dpmpp_2m").plan(model.schedule)
  noise = samplers.initial_noise(keys, (8, 8, 3))
  return samplers.sample(denoise, noise, plan.table, keys)


keys = samplers.image_keys(jax.random.key(2), jnp.arange(3))
means = generate(trained, colors, keys).mean((1, 2))
assert (means.argmax(1) == colors.argmax(1)).all()
print("the largest channels are those that were asked for")

# %% [markdown]
# In a package of your own the class works in a config: it is trained, saved,
# resumed and sampled by the commands. See
# [extending](../extending.md#conditioner).
