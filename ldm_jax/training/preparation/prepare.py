"""prepare(): downscales and packs a config's data set, or encodes it."""

from ldm_jax import config
from ldm_jax.errors import config_errors
from ldm_jax.fields.arguments import checked
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.folder_lock import folder_lock
from ldm_jax.training.preparation.images import pack_images
from ldm_jax.training.preparation.latents import cache_latents
from ldm_jax.training.preparation.request import PrepareRequest, PrepareResult


@checked
def prepare(request: PrepareRequest) -> PrepareResult:
  """Writes `request.out`, or what an interrupted preparation has not written.

  Several processes share the work on one file system.

  Raises:
    ConfigError: a field of the request or of the config cannot be used.
    ImageError: the first image cannot be read.
    DataError: the data set has too many bad images.
    DamagedFile: the first stage's run is damaged, or what an interrupted
      preparation left in the folder.
    OutputLocked: another process prepares it.
    SaveFailed: the disk has no space for it.
  """
  with config_errors():
    processes.initialize()
    experiment = config.resolve(request.config, request.overrides)
  with folder_lock(request.out):
    if request.first_stage is None:
      return pack_images(request, experiment)
    return cache_latents(request, experiment)
