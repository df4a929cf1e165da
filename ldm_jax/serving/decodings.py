"""Images that have left their slots and are being decoded."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ldm_jax.sampling.latent_codec import Decoding
from ldm_jax.sampling.slots import SlotJob
from ldm_jax.serving.slot_groups import Item
from ldm_jax.serving.ticket import Ticket


class Decoded(NamedTuple):
  """One image whose decoder is enqueued.

  Attributes:
    item: whose image it is.
    job: by which it was denoised.
    latents: on the devices.
    decoding: None where the latents themselves were asked for.
  """

  item: Item
  job: SlotJob
  latents: Float[Array, "1 h w c"]
  decoding: Decoding | None

  def wait(self) -> np.ndarray:
    """The image, or its latents, once they are computed.

    Raises:
      NonFinite: the image holds NaN or infinity.
    """
    if self.decoding is None:
      return np.asarray(self.latents[0])
    return self.job.decoded(self.decoding)


class Decodings:
  """Images in the order in which they were finished.

  They are decoded while the next row of the others is computed, so that the
  devices need not wait for the host.
  """

  def __init__(self):
    self._waiting: list[Decoded] = []

  def __len__(self) -> int:
    return len(self._waiting)

  @property
  def tickets(self) -> set[Ticket]:
    """Of all images here."""
    return {each.item.ticket for each in self._waiting}

  def begin(
    self, item: Item, job: SlotJob, latents: Float[Array, "1 h w c"]
  ) -> None:
    """Enqueues the decoder of a finished image."""
    generation, _ = item.ticket.sources[item.place]
    is_image = generation.inputs.output != "latents"
    decoding = job.begin_decoding(latents) if is_image else None
    self._waiting.append(Decoded(item, job, latents, decoding))

  def take(self) -> list[Decoded]:
    """All images, which are here no longer."""
    taken, self._waiting = self._waiting, []
    return taken
