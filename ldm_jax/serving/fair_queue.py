"""A queue that serves its clients in turn."""

import collections
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
  """First in, first out for each client; clients take turns (round robin).

  A client that waits with one item waits for at most one item of every other
  client, however many those have.
  """

  def __init__(self):
    self._waiting: dict[str, collections.deque[Item]] = {}

  def __len__(self) -> int:
    return sum(map(len, self._waiting.values()))

  def push(self, client: str, item: Item) -> None:
    """Appends an item to those of a client."""
    self._waiting.setdefault(client, collections.deque()).append(item)

  def pop(self) -> Item:
    """The next item of the client whose turn it is.

    Raises:
      IndexError: the queue is empty.
    """
    if not self._waiting:
      raise IndexError("the queue is empty")
    client = next(iter(self._waiting))
    items = self._waiting.pop(client)
    item = items.popleft()
    if items:
      self._waiting[client] = items  # behind the others
    return item

  def remove(self, is_removed: Callable[[Item], bool]) -> None:
    """Removes items, of whatever client."""
    for client, items in list(self._waiting.items()):
      kept = collections.deque(i for i in items if not is_removed(i))
      if kept:
        self._waiting[client] = kept
      else:
        del self._waiting[client]

  def before(self, is_sought: Callable[[Item], bool]) -> int:
    """How many items are taken before the first that is sought."""
    waiting = [list(items) for items in self._waiting.values()]
    taken = 0
    for turn in range(max(map(len, waiting), default=0)):
      for items in waiting:
        if turn < len(items):
          if is_sought(items[turn]):
            return taken
          taken += 1
    return taken
