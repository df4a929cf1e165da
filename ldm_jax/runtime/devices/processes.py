"""Start-up, collective operations and exit of multi-process programs."""

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.runtime.devices import coordinator, launchers

INITIALIZATION_SECONDS = 300
HEARTBEAT_SECONDS = 60
SHUTDOWN_SECONDS = 60
HEARTBEAT = "LDM_JAX_HEARTBEAT_SECONDS"


def initialize(environment: Mapping[str, str] = os.environ) -> None:
  """Calls `jax.distributed.initialize` if this is one of several processes.

  Processes are found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID, or by what Slurm, mpirun and TPU pods (GKE's too) set; see
  `launchers`. Must be called before anything uses devices.

  A process without a heartbeat for LDM_JAX_HEARTBEAT_SECONDS (60 if unset)
  counts as dead.

  Raises:
    ConfigError: a variable is missing or has an invalid value.
  """
  if jax.distributed.is_initialized():
    return
  options = launchers.options(environment)
  heartbeat = _heartbeat_seconds(environment)
  may_be_alone = options is None and _has_tpu(environment)
  if options is None and not may_be_alone:
    return
  try:
    jax.distributed.initialize(
      **_with_port(options or {}),
      initialization_timeout=INITIALIZATION_SECONDS,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
  except ValueError:  # jax finds no cluster that this TPU belongs to
    if not may_be_alone:
      raise


def _with_port(options: dict[str, Any]) -> dict[str, Any]:
  """The coordinator's address as HOST:PORT, that only this job has."""
  address, rank = (
    options.get(name) for name in ("coordinator_address", "process_id")
  )
  if isinstance(address, launchers.Job):
    found = coordinator.address(*address, rank, INITIALIZATION_SECONDS)
    return options | {"coordinator_address": found}
  if address and rank == 0:
    coordinator.require_free(int(address.rpartition(":")[2]))
  return options


def _has_tpu(environment: Mapping[str, str]) -> bool:
  """Whether this host has TPU chips; jax itself detects a pod."""
  if environment.get("JAX_PLATFORMS", "tpu").partition(",")[0] != "tpu":
    return False
  chips = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
  return chips and importlib.util.find_spec("libtpu") is not None


def _heartbeat_seconds(environment: Mapping[str, str]) -> int:
  value = environment.get(HEARTBEAT, str(HEARTBEAT_SECONDS))
  if not value.isdigit() or int(value) < 5:
    raise ConfigError(f"{HEARTBEAT} must be 5 seconds or more, got {value!r}")
  return int(value)


def is_first() -> bool:
  """Whether this is process 0, which alone writes files and logs."""
  return jax.process_index() == 0


def broadcast(value: bool) -> bool:
  """The value of process 0, on all processes."""
  if jax.process_count() == 1:
    return value
  from jax.experimental.multihost_utils import broadcast_one_to_all

  return bool(broadcast_one_to_all(np.bool_(value)))


def barrier(name: str) -> None:
  """Waits until all processes have called it; they must give the same name."""
  if jax.process_count() > 1:
    from jax.experimental.multihost_utils import sync_global_devices

    sync_global_devices(name)


def gather(array: Any) -> np.ndarray:
  """A global array as numpy, on every process."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  from jax.experimental.multihost_utils import process_allgather

  return process_allgather(array, tiled=True)


def sum_over(values: Sequence[np.ndarray]) -> np.ndarray:
  """The sums over all processes of equal arrays stacked, modulo their dtype."""
  stacked = np.stack(values)
  if jax.process_count() == 1:
    return stacked
  from jax.experimental.multihost_utils import process_allgather

  return process_allgather(stacked).sum(0, dtype=stacked.dtype)


def exit_if_failed(code: int) -> None:
  """Ends a process that failed among others, without waiting for them.

  jax's shutdown barrier would wait for them, and they for this process. A
  process by itself, or one that succeeded, returns.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if code and jax.distributed.is_initialized():
    os._exit(code)
