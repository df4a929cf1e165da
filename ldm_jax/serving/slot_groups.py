"""The slots of several signatures, and the images that are in them."""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from ldm_jax.sampling.slots import SlotJob, Slots
from ldm_jax.serving.ticket import Ticket

PROGRAMS = 4  # signatures whose slots are kept


class Item(NamedTuple):
  """One image of a ticket."""

  ticket: Ticket
  place: int


class SlotGroups:
  """Slots for each signature, and images that wait for one of theirs."""

  def __init__(self, count: int):
    """Args:
    count: slots of each signature.
    """
    self._count = count
    self._held: list[tuple[Item, SlotJob]] = []
    self._groups: dict[Hashable, Slots] = {}
    self._items: dict[tuple[Hashable, int], Item] = {}

  @property
  def held(self) -> int:
    """Images that wait for a slot of their signature."""
    return len(self._held)

  @property
  def placed(self) -> int:
    """Images in slots."""
    return len(self._items)

  @property
  def has_space(self) -> bool:
    """Whether an image of some signature could enter a slot."""
    if len(self._held) >= self._count:
      return False
    groups = self._groups.values()
    is_free = any(group.free() is not None for group in groups)
    return is_free or len(self._groups) < PROGRAMS

  @property
  def tickets(self) -> set[Ticket]:
    """Of all images here."""
    held = {item.ticket for item, _ in self._held}
    return held | {item.ticket for item in self._items.values()}

  @property
  def active(self) -> list[tuple[Hashable, Slots]]:
    """Signatures with an image in a slot, and their slots."""
    pairs = list(self._groups.items())
    return [(signature, each) for signature, each in pairs if each.occupied]

  def items(self, signature: Hashable) -> Iterator[tuple[int, Item]]:
    """(slot, image) of a signature."""
    for (owner, slot), item in list(self._items.items()):
      if owner == signature:
        yield slot, item

  def place(self, item: Item, job: SlotJob) -> None:
    """Puts an image in a free slot of its signature, or holds it."""
    group = self._groups.pop(job.signature, None)
    if group is None:
      group = Slots(job, self._count) if self._make_space() else None
    if group is not None:
      self._groups[job.signature] = group  # the last used is the last
    slot = None if group is None else group.free()
    if slot is None:
      self._held.append((item, job))
      return
    group.put(slot, job)
    self._items[job.signature, slot] = item

  def place_held(self) -> None:
    """Tries again for the images that are held."""
    held, self._held = self._held, []
    for item, job in held:
      self.place(item, job)

  def free(self, signature: Hashable, slot: int) -> None:
    """Frees a slot, if an image is in it."""
    if self._items.pop((signature, slot), None) is not None:
      self._groups[signature].remove(slot)

  def remove(self, ticket: Ticket) -> None:
    """Frees all that a ticket's images hold."""
    self._held = [pair for pair in self._held if pair[0].ticket is not ticket]
    for (signature, slot), item in list(self._items.items()):
      if item.ticket is ticket:
        self.free(signature, slot)

  def drop(self, signature: Hashable) -> list[Item]:
    """Drops a signature's slots; returns the images that were in them."""
    items = [item for _, item in self.items(signature)]
    for slot, _ in list(self.items(signature)):
      self.free(signature, slot)
    del self._groups[signature]
    return items

  def _make_space(self) -> bool:
    """Drops the slots of a signature that is not used, if there are many."""
    if len(self._groups) < PROGRAMS:
      return True
    for signature, group in self._groups.items():
      if not group.occupied:
        del self._groups[signature]
        return True
    return False
