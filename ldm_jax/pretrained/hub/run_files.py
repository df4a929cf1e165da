"""The files of a run that are uploaded."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.devices.sharding import MeshShape

FILES = ("config.json", "data.json", "metrics.jsonl")
FOLDERS = ("frozen", "tokenizer")


@contextlib.contextmanager
def uploaded_files(
  run: Run, include_optimizer: bool
) -> Iterator[dict[str, str]]:
  """Paths by names in the repository, valid until the block ends.

  Args:
    include_optimizer: the newest checkpoint as it is, to resume training from;
      else one of the parameters that sampling uses alone: the average, where
      the run keeps one.
  """
  found = {
    name: os.path.join(run.folder, name)
    for name in FILES
    if os.path.isfile(os.path.join(run.folder, name))
  }
  for name in FOLDERS:
    found |= files_below(os.path.join(run.folder, name), f"{name}/")
  with contextlib.ExitStack() as stack:
    folder = os.path.join(run.folder, "checkpoints")
    if not include_optimizer:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      _write_parameters(run, folder)
    step = os.path.join(folder, str(run.step))
    yield found | files_below(step, f"checkpoints/{run.step}/")


def files_below(folder: str, prefix: str) -> dict[str, str]:
  """Paths of all files of a folder by name, which begins with `prefix`."""
  found = {}
  for place, _, names in os.walk(folder):
    for name in names:
      path = pathlib.Path(place, name)
      found[prefix + path.relative_to(folder).as_posix()] = str(path)
  return found


def _write_parameters(run: Run, folder: str) -> None:
  """A checkpoint of what sampling reads, under the step that it is of."""
  parameters = run.trained_part(MeshShape().build())
  with contextlib.closing(Checkpoints(folder)) as checkpoints:
    checkpoints.save(run.step, parameters)
