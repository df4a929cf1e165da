"""kl-f4 on a folder of photographs, at a quarter of its width, on a CPU.

The full first stage of Rombach et al. 2022: L1 + LPIPS through the full VGG16,
a KL term of weight 1e-6, and a patch discriminator that starts late, with the
adaptive weight. In LDM it is 128 channels wide and runs for 176,991 steps of
256-pixel crops; here it is 32 wide and runs for about 13 minutes on 48-pixel
crops.

The photographs are the ones that come with scikit-image (the `test` extra).
For others set --config.data.source.path=FOLDER and
--config.data.validation.path, and clear `only` of both. No held-out photograph
is a crop or the stereo counterpart of one that is trained on.

VGG16's weights cannot be distributed here: "random" features are used unless
--config.perceptual.trunk=vgg16-397923af.pth and
--config.perceptual.heads=lpips/weights/v0.1/vgg.pth name the files.
"""

import importlib.util
import pathlib

from ldm_jax.config import Data, Experiment, PerceptualWeights, Reports
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask

STEPS = 1300

LEARNED = (
  "astronaut.png",
  "hubble_deep_field.jpg",
  "ihc.png",
  "motorcycle_left.png",
  "motorcycle_right.png",
  "retina.jpg",
)
HELD_OUT = ("chelsea.png", "coffee.png", "rocket.jpg")


def photographs() -> str:
  """The folder of scikit-image's photographs, or "photos" without it."""
  spec = importlib.util.find_spec("skimage")
  if spec is None:
    return "photos"
  return str(pathlib.Path(spec.origin).parent / "data")


def get_config():
  folder = photographs()
  optimizer = Optimizer(
    rate=1e-3,
    betas=(0.9, 0.95),
    weight_decay=0.0,
    warmup=50,
    decay="cosine",
    decay_steps=STEPS,
    clip=1e4,
  )
  return Experiment(
    task=AutoencoderTask(
      autoencoder=Autoencoder(
        ConvStack(channels=32, multipliers=(1, 2, 4), blocks=1, groups=8),
        latent_channels=3,
      ),
      perceptual=LPIPS(),
      discriminator=PatchDiscriminator(),
      optimizer=optimizer,
      critic_optimizer=optimizer,
      perceptual_weight=0.1,
      bottleneck_weight=1e-6,
      disc_start=STEPS * 4 // 5,
      disc_weight=0.1,
      ema_decay=0.99,
      init_scale=3**0.5,
    ),
    data=Data(
      source=Folder(folder, only=LEARNED),
      validation=Folder(folder, only=HELD_OUT),
      augment=Augment(size=48, crop="random", scale=(0.1, 0.25)),
      validation_augment=Augment(size=256, crop="center"),
      batch=4,
      held_out=len(HELD_OUT),
    ),
    steps=STEPS,
    checkpoints=CheckpointPolicy(every=STEPS // 3, best="psnr", best_is="max"),
    reports=Reports(
      every=25, previews_every=STEPS // 3, previews=len(HELD_OUT)
    ),
    perceptual=PerceptualWeights(trunk="random", heads="random"),
  )
