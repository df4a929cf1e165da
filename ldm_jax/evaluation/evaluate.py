"""Behind evaluate: pictures found or made, measured, and laid out."""

import argparse
import dataclasses
import json
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from ldm_jax.cli.exit_codes import DATA, usage_errors
from ldm_jax.data.bad_images import SkipBadImages
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation import contact_sheets
from ldm_jax.evaluation.generate_samples import SampleWriter
from ldm_jax.evaluation.image_sets import ImageSet, evenly_spaced, folder_images
from ldm_jax.evaluation.metric_networks import Each, MetricNetworks
from ldm_jax.evaluation.metrics import comparison
from ldm_jax.evaluation.metrics.distribution_distances import cmmd
from ldm_jax.evaluation.metrics.statistics import (
  SUFFIXES,
  Statistics,
  read_statistics,
)
from ldm_jax.run import Run
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.json_values import json_value
from ldm_jax.training.dataloading import bad_image_log

logger = logging.getLogger(__name__)

LEAST = 2048  # pictures, as many as features


@dataclasses.dataclass(frozen=True)
class Case:
  """What is measured.

  Attributes:
    against: pictures, or what is known of some, or nothing.
    is_paired: whether a picture and that of its number are the same one.
    is_restored: whether samples are reconstructions.
    captions: of the samples, if all have one.
    learned: examples that were not trained on, and pictures that were and may
      have been learned by heart.
    told: of how it came about.
  """

  samples: ImageSet
  against: ImageSet | Statistics | None
  is_paired: bool
  told: dict[str, Any]
  is_restored: bool = False
  captions: Sequence[str] = ()
  learned: tuple[ImageSet, ImageSet] | None = None


def evaluate(flags: argparse.Namespace) -> int:
  """Measures, prints a table and one line of JSON; returns the exit code."""
  with usage_errors(DATA):
    processes.initialize()
    sharding = MeshShape().build()
    if Run.exists(flags.samples):
      maker = SampleWriter(flags, sharding)
      count = maker.count
      against = _against(flags, count) or maker.held
    else:
      maker, case = None, _folders(flags)
      count, against = len(case.samples), case.against
    _check(flags, count, against)
    critics = MetricNetworks(flags, sharding)
    if flags.out:
      os.makedirs(flags.out, exist_ok=True)
    if maker:
      maker.begin()
  if maker:
    with usage_errors(DATA):
      case = _of_run(flags, maker, against)
  with usage_errors(DATA):
    measured = _measured(flags, critics, case)
  _tell(flags, critics, case, measured)
  return 0


def _check(
  flags: argparse.Namespace, count: int, against: ImageSet | Statistics | None
) -> None:
  """Raises ConfigError for what would be found out at the end."""
  if flags.inception and count < LEAST and not flags.allow_small:
    raise ConfigError(
      f"Frechet distances of {count} pictures are biased upwards and are not "
      f"those of 50,000 that are published; give {LEAST} or more, or "
      "--allow_small"
    )
  if isinstance(against, Statistics) and against.world != flags.resize:
    world = against.world
    if world is not None:
      raise ConfigError(
        f"{flags.against} is of the {world} world of resizing; give "
        f"--resize={world}"
      )
    if flags.resize == "both":
      raise ConfigError(
        f"{flags.against} does not say how its pictures were resized; give "
        "--resize=legacy (ADM's are) or --resize=clean"
      )
  if flags.write_statistics and (not flags.inception or flags.resize == "both"):
    raise ConfigError(
      "statistics are of one world and need Inception; give --inception and "
      "--resize=legacy or --resize=clean"
    )


def _folders(flags: argparse.Namespace) -> Case:
  """Of pictures that are there."""
  samples = folder_images(flags.samples, flags.num)
  against = _against(flags, len(samples))
  is_album = isinstance(against, ImageSet)
  if against is None and not (flags.write_statistics or flags.clip):
    raise ConfigError(
      f"what is {flags.samples} to be compared with? Name a folder or "
      "statistics, or give --write_statistics"
    )
  if flags.paired and not is_album:
    raise ConfigError("--paired is of two folders; name the second")
  if flags.paired and samples.names != against.names:
    odd = sorted(set(samples.names) ^ set(against.names))
    raise ConfigError(
      f"--paired needs the same names in both folders; {odd[0]!r} is in one"
    )
  captions = samples.captions()
  if flags.paired and not captions:
    captions = against.captions()
  told = {"what": "pictures"}
  return Case(samples, against, flags.paired, told, flags.paired, captions)


def _of_run(
  flags: argparse.Namespace, maker: SampleWriter, against: ImageSet | Statistics
) -> Case:
  """Of pictures that a run makes now."""
  samples, is_restored = maker.make(), maker.is_restoring
  captions, learned = [] if flags.null else maker.held.captions(), None
  if not is_restored and flags.train > 0:
    data = maker.run.experiment.data
    sound = SkipBadImages(data.source, bad_image_log(maker.run.experiment))
    learned = maker.held, evenly_spaced(sound, data.centred, flags.train)
  is_paired = is_restored and against is maker.held
  return Case(
    *(samples, against, is_paired, maker.told),
    *(is_restored, captions, learned),
  )


def _against(
  flags: argparse.Namespace, count: int
) -> ImageSet | Statistics | None:
  """What is named beside the samples.

  Raises:
    ConfigError: it is a folder of another number of pictures.
  """
  if flags.against is None:
    return None
  if flags.against.endswith(SUFFIXES):
    return read_statistics(flags.against)
  found = folder_images(flags.against, flags.num)
  if len(found) != count:
    raise ConfigError(
      f"{count} pictures beside {len(found)} of {flags.against}: distances "
      "depend on the number and cannot be compared; give --num="
      f"{min(count, len(found))} for the first of both, or the statistics of "
      "a whole set (--write_statistics)"
    )
  return found


def _measured(
  flags: argparse.Namespace, critics: MetricNetworks, case: Case
) -> dict[str, Any]:
  """Every metric that can be had; sheets are laid beside."""
  features, told = critics.features(case.samples), {}
  if flags.write_statistics:
    ((world, seen),) = features.items()
    if processes.is_first():
      Statistics.of(seen, world).write(flags.write_statistics)
      print(flags.write_statistics)
  real = None
  if isinstance(case.against, ImageSet):
    real = critics.features(case.against)
  for world, seen in features.items():
    told |= comparison.single_set_metrics(seen, world)
    if real:
      other = Statistics.of(real[world], world)
      told |= comparison.paired_metrics(seen, real[world], world)
      told |= comparison.distribution_metrics(seen, other, world)
    elif case.against is not None:
      told |= comparison.distribution_metrics(seen, case.against, world)
  if critics.clip is not None:
    told |= _clip(critics, case)
  each: Each = {}
  if case.is_paired:
    each = critics.pairs(case.samples, case.against)
    told |= {name: values.mean() for name, values in each.items()}
  if case.is_restored:
    told = {re.sub(r"^s?fid", r"r\g<0>", n): v for n, v in told.items()}
  if real is not None:
    seen = [features, real]
    contact_sheets.extremes(flags.out, case.samples, case.against, seen, each)
  if case.learned is not None:
    unseen, train = case.learned
    theirs = real if unseen is case.against else critics.features(unseen)
    seen = [features, theirs, critics.features(train)]
    albums = case.samples, unseen, train
    told["memorisation_ratio"] = contact_sheets.memorisation(
      flags.out, albums, seen
    )
  return {name: float(value) for name, value in told.items()}


def _clip(critics: MetricNetworks, case: Case) -> dict[str, float]:
  """CLIP score where there are captions, CMMD where there are two sets."""
  seen, told = critics.embeddings(case.samples), {}
  if isinstance(case.against, ImageSet):
    told["cmmd"] = cmmd(seen, critics.embeddings(case.against))
  if case.captions:
    told["clip_score"] = critics.scores(seen, case.captions).mean()
  else:
    critics.missing["clip_score"] = "captions of the samples"
  return told


def _tell(
  flags: argparse.Namespace,
  critics: MetricNetworks,
  case: Case,
  measured: dict[str, float],
) -> None:
  """A table, and a line of JSON, which --out keeps too."""
  against = case.against
  count = against.count if isinstance(against, Statistics) else None
  if isinstance(against, ImageSet):
    count = len(against)
  told = {
    "samples": flags.samples,
    "against": flags.against or (against and "held-out examples"),
    "n": len(case.samples),
    "n_against": count,
    **case.told,
    "resize": flags.resize,
  }
  if flags.clip:
    told["clip"] = os.path.basename(os.path.normpath(flags.clip))
  if isinstance(against, ImageSet) or case.learned:
    told["neighbours_by"] = "inception" if flags.inception else "pixels"
  pairs = ("ssim", "lpips")
  absent = [n for n in critics.missing if n not in pairs or case.is_paired]
  told |= measured | dict.fromkeys(absent, "unavailable")
  told = {name: json_value(value) for name, value in told.items()}
  if not processes.is_first():
    return
  for need in sorted({critics.missing[name] for name in absent}):
    names = ", ".join(n for n in absent if critics.missing[n] == need)
    logger.info(f"unavailable: {names}; give {need}")
  width = max(map(len, told))
  for name, value in told.items():
    print(f"{name:{width}}  {value}")
  line = json.dumps(told)
  if flags.out:
    path = os.path.join(flags.out, "evaluation.json")
    with open(path + ".part", "w") as file:
      file.write(line + "\n")
    os.replace(path + ".part", path)
  print(line)
