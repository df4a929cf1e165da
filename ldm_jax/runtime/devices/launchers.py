"""The processes that a launcher started: Slurm, MPI, TPU pods, or variables.

The arguments of `jax.distributed.initialize` are complete wherever the
environment gives them, except for the coordinator's port (see `coordinator`),
and jax's own detection is off: inside a Slurm job it takes the daemons of
mpirun for the processes, it needs mpi4py for Open MPI 5 and MPICH, and it gives
two steps of one job the same port.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm_jax.errors import ConfigError

Environment = Mapping[str, str]


class Job(NamedTuple):
  """The host of process 0, and a name that only its processes share."""

  host: str
  name: str


class Rank(NamedTuple):
  """A process among those of a launcher; `local` are those of its host."""

  rank: int
  size: int
  local_rank: int
  local_size: int


def options(environment: Environment) -> dict[str, Any] | None:
  """Arguments of `jax.distributed.initialize`; None for a single process.

  `coordinator_address` is a `Job` where the launcher gives no port.

  Raises:
    ConfigError: a variable is missing or invalid, or the launcher gives no
      address for the coordinator.
  """
  mpi = mpi_rank(environment)
  if environment.get("JAX_COORDINATOR_ADDRESS"):
    return _of_variables(environment, mpi)
  if mpi is not None:
    return _of_mpi(environment, mpi) if mpi.size > 1 else None
  if environment.get("SLURM_NTASKS", "1") not in ("", "1"):
    return _of_slurm(environment)
  if environment.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "1"):
    return _of_slurm(environment)
  names = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
  hosts = any("," in environment.get(name, "") for name in names)
  slices = "MEGASCALE_COORDINATOR_ADDRESS" in environment
  return {} if hosts or slices else None


def mpi_rank(environment: Environment) -> Rank | None:
  """By the variables of Open MPI, or of Hydra (MPICH, Intel MPI).

  `srun --mpi=pmi2` sets PMI_RANK too, but not MPI_LOCALNRANKS.
  """
  names = {
    "OMPI_COMM_WORLD_SIZE": (
      *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
      *("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ),
    "MPI_LOCALNRANKS": (
      *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ),
  }
  for mark, variables in names.items():
    if mark in environment:
      return Rank(*(_number(environment, name) for name in variables))
  return None


def _of_variables(environment: Environment, mpi: Rank | None) -> dict[str, Any]:
  """JAX_COORDINATOR_ADDRESS, with the rank of its companions or of mpirun."""
  address = environment["JAX_COORDINATOR_ADDRESS"]
  if not re.fullmatch(r".+:\d{1,5}", address):
    raise ConfigError(
      f"JAX_COORDINATOR_ADDRESS must be HOST:PORT, got {address!r}"
    )
  if mpi is not None and "JAX_PROCESS_ID" not in environment:
    return _explicit(address, mpi, environment)
  count = _number(environment, "JAX_NUM_PROCESSES")
  process = _number(environment, "JAX_PROCESS_ID")
  if not 0 <= process < count:
    raise ConfigError(
      f"JAX_PROCESS_ID={process} must be 0 to {count - 1}, one of "
      f"JAX_NUM_PROCESSES={count}"
    )
  return {
    "coordinator_address": address,
    "num_processes": count,
    "process_id": process,
  }


def _of_mpi(environment: Environment, mpi: Rank) -> dict[str, Any]:
  if mpi.local_size == mpi.size:
    if job := _mpirun(environment):
      return _explicit(Job("127.0.0.1", job), mpi, environment)
  elif nodes := environment.get("SLURM_JOB_NODELIST"):
    # mpirun puts its first process on the first host of the job.
    name = f"{_slurm_job(environment)} {_shared_name(environment)}".strip()
    return _explicit(Job(first_host(nodes), name), mpi, environment)
  elif "OMPI_MCA_orte_hnp_uri" in environment:
    return {"cluster_detection_method": "ompi"}
  if importlib.util.find_spec("mpi4py") is None:
    raise ConfigError(
      "this mpirun gives no coordinator address; set JAX_COORDINATOR_ADDRESS="
      "HOST:PORT of the first process for all of them, or pip install mpi4py"
    )
  return {"cluster_detection_method": "mpi4py"}


def _of_slurm(environment: Environment) -> dict[str, Any]:
  """Inside a step of srun, of which one job may have several at once."""
  if "SLURM_STEP_NODELIST" not in environment:
    raise ConfigError(
      f"this Slurm job has {environment.get('SLURM_NTASKS')} tasks, but this "
      "process was not started by srun; write srun before the command, or ask "
      "for one task (--ntasks=1)"
    )
  has_size = "SLURM_STEP_NUM_TASKS" in environment
  size = "SLURM_STEP_NUM_TASKS" if has_size else "SLURM_NTASKS"
  rank = Rank(
    *(_number(environment, name) for name in ("SLURM_PROCID", size)),
    _number(environment, "SLURM_LOCALID"),
    _tasks_here(environment),
  )
  name = f"{_slurm_job(environment)} step {environment.get('SLURM_STEP_ID', 0)}"
  host = first_host(environment["SLURM_STEP_NODELIST"])
  return _explicit(Job(host, name), rank, environment)


def _slurm_job(environment: Environment) -> str:
  """Its number; a requeued job must not meet what is left of itself."""
  restart = environment.get("SLURM_RESTART_COUNT")
  name = f"Slurm's job {environment.get('SLURM_JOB_ID')}"
  return f"{name} restart {restart}" if restart else name


def _tasks_here(environment: Environment) -> int:
  """Tasks of this process's node, of a list such as 2(x3),1."""
  name = "SLURM_STEP_TASKS_PER_NODE"
  if name not in environment:
    name = "SLURM_TASKS_PER_NODE"
  counts: list[int] = []
  for part in environment.get(name, "").split(","):
    match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
    if match is None:
      raise ConfigError(f"{name} must be as 2(x3),1, got {part!r}")
    counts += [int(match[1])] * int(match[2] or 1)
  node = _number(environment, "SLURM_NODEID")
  if node >= len(counts):
    raise ConfigError(
      f"SLURM_NODEID={node}, but {name} has {len(counts)} nodes"
    )
  return counts[node]


def _explicit(
  address: str | Job, rank: Rank, environment: Environment
) -> dict[str, Any]:
  """A process alone on its host takes all devices, others one each.

  Where the launcher has bound one GPU to each process, it is that one.
  """
  found = {
    "coordinator_address": address,
    "num_processes": rank.size,
    "process_id": rank.rank,
    "cluster_detection_method": "deactivate",
  }
  visible = environment.get("CUDA_VISIBLE_DEVICES", "")
  is_bound = bool(visible) and "," not in visible
  if rank.local_size > 1 and not is_bound:
    found["local_device_ids"] = [rank.local_rank]
  return found


def first_host(nodes: str) -> str:
  """The first host of a Slurm list, such as node[001-004,7],other."""
  match = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
  if match is None:
    raise ConfigError(f"SLURM_STEP_NODELIST is no list of hosts: {nodes!r}")
  return match[1] + (match[2] or "")


def _mpirun(environment: Environment) -> str | None:
  """A name that the processes of one mpirun share, and no other's."""
  return _shared_name(environment) or _ancestor(os.getpid())


def _shared_name(environment: Environment) -> str:
  """What Open MPI gives all processes of one mpirun; empty for Hydra."""
  names = (
    *("PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri"),
    "OMPI_MCA_ess_base_jobid",
  )
  return next((environment[name] for name in names if name in environment), "")


def _ancestor(pid: int) -> str | None:
  """The nearest ancestor that is Hydra's or mpiexec, by /proc."""
  try:
    while pid > 1:
      with open(f"/proc/{pid}/stat") as file:
        name, _, rest = file.read().partition("(")[2].rpartition(")")
      if name.startswith(("hydra", "mpiexec", "mpirun")):
        return f"{name} {pid}"
      pid = int(rest.split()[1])
  except (OSError, ValueError, IndexError):
    pass
  return None


def _number(environment: Environment, name: str) -> int:
  value = environment.get(name, "")
  if not value.isascii() or not value.isdigit():
    raise ConfigError(f"{name} must be a whole number, got {value!r}")
  return int(value)
