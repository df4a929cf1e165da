"""What a data set is made of, so that a change of it is noticed on resuming.

A new class folder shifts the labels of all that follow it, and a new image
changes the order of every later epoch.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.protocols import Source
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.data.sources.hf_dataset import HfDataset
from ldm_jax.data.sources.mix import Mix
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.data.sources.shards import Shards, shard_files

Fingerprint = dict[str, Any]


def fingerprint(source: Source) -> Fingerprint:
  """{"count", "classes", "names"} of a source; equal for a copy elsewhere.

  "classes" are the names in the order of the labels, where the source has
  `classes`, and "names" is the SHA-256 of the sorted names of its examples,
  where it has `names` (relative to its folder).
  """
  names = hashlib.sha256(json.dumps(_names(source)).encode()).hexdigest()
  return {
    "count": len(source),
    "classes": list(getattr(source, "classes", ())),
    "names": names,
  }


def _names(source: Any) -> list[Any]:
  """The names of a source's examples, in a fixed order."""
  if isinstance(source, Mix):
    return [_names(inner) for inner in source.sources]
  if isinstance(source, Neighbours):
    return _names(source.source)
  if isinstance(source, Shards):
    return [os.path.basename(name) for name in shard_files(source.path)]
  if isinstance(source, HfDataset):
    return [os.path.basename(name) for name in source.files]
  if isinstance(source, CachedLatents):
    return [json.dumps(source.manifest, sort_keys=True)]
  return sorted(map(str, getattr(source, "names", ())))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """How a data set differs from before, in words; empty if it does not."""
  found = []
  if before["count"] != now["count"]:
    found.append(f"{before['count']} examples became {now['count']}")
  old = list(before["classes"])
  new = list(now["classes"]) if old else []  # none were recorded to compare
  for words, names in (
    ("new classes", [name for name in new if name not in old]),
    ("missing classes", [name for name in old if name not in new]),
  ):
    if names:
      found.append(f"{words}: {', '.join(names[:3])}")
  shifted = [
    name for name in old if name in new and old.index(name) != new.index(name)
  ]
  if shifted:
    found.append(
      f"the labels of {len(shifted)} classes change, {shifted[0]!r} from "
      f"{old.index(shifted[0])} to {new.index(shifted[0])}"
    )
  if not found and before["names"] != now["names"]:
    found.append(f"other names of the {now['count']} examples")
  return found
