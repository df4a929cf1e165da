"""Several processes that compute as one: how they meet, agree and end."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# Seconds: for all to arrive, until a silent one counts as dead, and to part.
ARRIVE, SILENT, PART = 300, 60, 60
HEARTBEAT = "LDM_JAX_HEARTBEAT_SECONDS"


def initialize(environment: Mapping[str, str] = os.environ) -> None:
  """Meets the other processes, if the surroundings say that there are any.

  Plain hosts say so by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID; Slurm, mpirun and TPU pods, on GKE too, are recognised by jax
  itself. To be called before anything asks for devices.

  A process that is silent for LDM_JAX_HEARTBEAT_SECONDS, or 60, is dead.

  Raises:
    ValueError: the numbers are missing, or make no sense.
  """
  if jax.distributed.is_initialized():
    return
  told = _told(environment)
  silent = _seconds(environment)
  may_be_alone = told is None and _has_tpu(environment)
  if told is None and not may_be_alone:
    return
  try:
    jax.distributed.initialize(
      **(told or {}),
      initialization_timeout=ARRIVE,
      heartbeat_timeout_seconds=silent,
      shutdown_timeout_seconds=PART,
    )
  except ValueError:  # jax knows no cluster that this TPU would belong to
    if not may_be_alone:
      raise


def _told(environment: Mapping[str, str]) -> dict[str, Any] | None:
  """What to start with; None for a process that is alone."""
  address = environment.get("JAX_COORDINATOR_ADDRESS")
  if address:
    count = _number(environment, "JAX_NUM_PROCESSES")
    mine = _number(environment, "JAX_PROCESS_ID")
    if not 0 <= mine < count:
      raise ValueError(
        f"JAX_PROCESS_ID={mine} must be 0 to {count - 1}, one of "
        f"JAX_NUM_PROCESSES={count}"
      )
    return {
      "coordinator_address": address,
      "num_processes": count,
      "process_id": mine,
    }
  are_many = lambda name: environment.get(name, "1") not in ("", "1")
  if are_many("SLURM_NTASKS"):
    return _slurms(environment)
  if are_many("OMPI_COMM_WORLD_SIZE") or are_many("PMI_SIZE"):
    if "OMPI_MCA_orte_hnp_uri" in environment:
      return {}
    if importlib.util.find_spec("mpi4py") is None:
      raise ValueError(
        "this mpirun does not say where processes meet; pip install mpi4py, or "
        "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
      )
    return {"cluster_detection_method": "mpi4py"}
  names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
  hosts = any("," in environment.get(name, "") for name in names)
  slices = "MEGASCALE_COORDINATOR_ADDRESS" in environment
  return {} if hosts or slices else None


def _slurms(environment: Mapping[str, str]) -> dict[str, Any]:
  """A task alone on its node has all of its GPUs, of which jax takes one."""
  tasks = environment.get("SLURM_TASKS_PER_NODE", "").partition("(")[0]
  gpus = environment.get("SLURM_GPUS_ON_NODE", "")
  if tasks == "1" and gpus.isdigit():
    return {"local_device_ids": list(range(int(gpus)))}
  return {}


def _has_tpu(environment: Mapping[str, str]) -> bool:
  """Whether this machine seems to be part of a TPU; jax asks its cluster."""
  if environment.get("JAX_PLATFORMS", "tpu").partition(",")[0] != "tpu":
    return False
  chips = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
  return chips and importlib.util.find_spec("libtpu") is not None


def _seconds(environment: Mapping[str, str]) -> int:
  """Until a silent process counts as dead."""
  told = environment.get(HEARTBEAT, str(SILENT))
  if not told.isdigit() or int(told) < 5:
    raise ValueError(f"{HEARTBEAT} must be 5 seconds or more, got {told!r}")
  return int(told)


def _number(environment: Mapping[str, str], name: str) -> int:
  value = environment.get(name, "")
  if not value.isdigit():
    raise ValueError(
      f"JAX_COORDINATOR_ADDRESS is set, so {name} must be a whole number, got "
      f"{value!r}"
    )
  return int(value)


def is_first() -> bool:
  """Whether this is the process that writes and speaks."""
  return jax.process_index() == 0


def broadcast(answer: bool) -> bool:
  """The first process's answer, on all of them."""
  if jax.process_count() == 1:
    return answer
  from jax.experimental.multihost_utils import broadcast_one_to_all

  return bool(broadcast_one_to_all(np.bool_(answer)))


def barrier(where: str) -> None:
  """Waits until all are at the same place."""
  if jax.process_count() > 1:
    from jax.experimental.multihost_utils import sync_global_devices

    sync_global_devices(where)


def gather(array: Any) -> np.ndarray:
  """A whole array on every process's host."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  from jax.experimental.multihost_utils import process_allgather

  return process_allgather(array, tiled=True)


def exit_process(code: int) -> None:
  """Ends the process; one that failed does not wait for the others.

  They would wait for it, and its last words be lost among theirs.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if code and jax.distributed.is_initialized():
    os._exit(code)
  sys.exit(code)
