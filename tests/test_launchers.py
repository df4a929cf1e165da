"""Which processes a launcher started, by its environment alone."""

import pathlib
import subprocess
import sys

import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.runtime.devices import launchers


def step(**more):
  """Of the third of four tasks on two nodes, as srun sets it."""
  return {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "node[017-018]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
  } | more


def open_mpi(size="2", local="2", **more):
  return {
    "OMPI_COMM_WORLD_SIZE": size,
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": local,
  } | more


def hydra(**more):
  return {
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "MPI_LOCALRANKID": "1",
    "MPI_LOCALNRANKS": "2",
  } | more


@pytest.mark.parametrize(
  "environment, expected",
  [
    ({}, None),
    ({"SLURM_NTASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, None),
    (open_mpi("1", "1"), None),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1"}, "whole"),
    ({"TPU_PROCESS_ADDRESSES": "10.0.0.1:8476,10.0.0.2:8476"}, {}),
    ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, {}),
    ({"MEGASCALE_COORDINATOR_ADDRESS": "here"}, {}),
  ],
)
def test_one_process_and_tpu_pods(environment, expected):
  if expected == "whole":
    with pytest.raises(ConfigError, match="must be a whole number, got ''"):
      launchers.options(environment)
  else:
    assert launchers.options(environment) == expected


def test_a_step_of_slurm_has_an_address_of_its_own():
  found = launchers.options(step())
  assert found["num_processes"] == 4 and found["process_id"] == 2
  assert found["local_device_ids"] == [0]
  assert found["cluster_detection_method"] == "deactivate"
  assert found["coordinator_address"].host == "node017"
  same = launchers.options(step(SLURM_PROCID="0", SLURM_LOCALID="0"))
  assert same["coordinator_address"] == found["coordinator_address"]
  for name, value in (
    ("SLURM_STEP_ID", "1"),
    ("SLURM_JOB_ID", "8"),
    ("SLURM_RESTART_COUNT", "1"),
  ):
    other = launchers.options(step(**{name: value}))
    assert other["coordinator_address"] != found["coordinator_address"]


def test_one_task_of_a_node_and_bound_gpus_take_what_they_see():
  alone = step(SLURM_STEP_TASKS_PER_NODE="1(x4)", SLURM_GPUS_ON_NODE="8")
  assert "local_device_ids" not in launchers.options(alone)
  bound = step(CUDA_VISIBLE_DEVICES="3")
  assert "local_device_ids" not in launchers.options(bound)
  free = step(CUDA_VISIBLE_DEVICES="0,1", SLURM_LOCALID="1")
  assert launchers.options(free)["local_device_ids"] == [1]


def test_nodes_may_have_different_numbers_of_tasks():
  for tasks, expected in (("1,2", [1]), ("2,1", None), ("1(x3),2", None)):
    found = launchers.options(
      step(SLURM_STEP_TASKS_PER_NODE=tasks, SLURM_LOCALID="1")
    )
    assert found.get("local_device_ids") == expected


@pytest.mark.parametrize(
  "name",
  ["SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_PROCID", "SLURM_NODEID"],
)
def test_variables_of_slurm_are_numbers(name):
  with pytest.raises(ConfigError, match=f"{name} must be a whole number"):
    launchers.options(step(**{name: "x"}))


def test_two_mpiruns_of_one_job_have_names_of_their_own():
  job = {"SLURM_JOB_NODELIST": "node[017-018]", "SLURM_JOB_ID": "7"}
  one, other = (
    launchers.options(job | open_mpi("4", "2", PMIX_NAMESPACE=name))
    for name in ("a", "b")
  )
  assert one["coordinator_address"] != other["coordinator_address"]


def test_a_batch_script_without_srun_is_one_line():
  with pytest.raises(ConfigError, match=r"4 tasks, .*write srun before"):
    launchers.options({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})


@pytest.mark.parametrize(
  "nodes, first",
  [
    ("node001", "node001"),
    ("node001,host2", "node001"),
    ("node[001-0015],host2", "node001"),
    ("gpu-a[7,9-12]", "gpu-a7"),
    ("n[3]-ib,n4", "n3"),
  ],
)
def test_the_first_host_of_a_list(nodes, first):
  assert launchers.first_host(nodes) == first


def test_an_mpirun_on_one_host_needs_nothing_more():
  one = launchers.options(open_mpi(PMIX_NAMESPACE="a"))
  assert one["coordinator_address"].host == "127.0.0.1"
  assert one["process_id"] == 1 and one["local_device_ids"] == [1]
  other = launchers.options(open_mpi(PMIX_NAMESPACE="b"))
  assert one["coordinator_address"] != other["coordinator_address"]


def test_hydras_processes_are_those_of_one_ancestor(monkeypatch):
  monkeypatch.setattr(launchers, "_ancestor", lambda pid: "hydra_pmi_proxy 9")
  found = launchers.options(hydra())
  assert found["num_processes"] == 2 and found["process_id"] == 1


def test_an_ancestor_is_found_by_its_name(tmp_path):
  """A script named mpiexec starts Python through a shell."""
  code = (
    "import os; from ldm_jax.runtime.devices import launchers;"
    "print(launchers._ancestor(os.getpid()))"
  )
  script = tmp_path / "mpiexec"
  script.write_text(f"#!/bin/sh\nsh -c \"$1 -c '{code}'; true\"; true\n")
  script.chmod(0o755)
  done = subprocess.run(
    [str(script), sys.executable],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
  )
  assert done.stdout.startswith("mpiexec "), done
  assert launchers._ancestor(2**31) is None


def test_pmi_of_srun_is_slurms():
  found = launchers.options(step(PMI_RANK="2", PMI_SIZE="4"))
  assert found["coordinator_address"].host == "node017"


def test_mpirun_inside_slurm_does_not_take_the_daemons_for_its_processes():
  daemons = step(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2")
  job = {"SLURM_JOB_NODELIST": "node[017-018]"}
  found = launchers.options(daemons | job | open_mpi("4", "2"))
  assert found["num_processes"] == 4 and found["process_id"] == 1
  assert found["coordinator_address"].host == "node017"


def test_an_mpirun_over_hosts_without_an_address_is_one_line(monkeypatch):
  spec = lambda found: lambda name: found
  monkeypatch.setattr(launchers.importlib.util, "find_spec", spec(None))
  with pytest.raises(ConfigError, match="set JAX_COORDINATOR_ADDRESS=HOST"):
    launchers.options(open_mpi("4", "2"))
  monkeypatch.setattr(launchers.importlib.util, "find_spec", spec("a spec"))
  expected = {"cluster_detection_method": "mpi4py"}
  assert launchers.options(open_mpi("4", "2")) == expected


def test_an_address_has_a_port():
  with pytest.raises(ConfigError, match="must be HOST:PORT, got 'host'"):
    launchers.options({"JAX_COORDINATOR_ADDRESS": "host"})


def test_an_address_may_be_given_to_mpirun():
  given = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
  found = launchers.options(open_mpi("4", "2") | given)
  assert found["coordinator_address"] == "10.0.0.1:1234"
  assert found["num_processes"] == 4 and found["process_id"] == 1
  by_hand = given | {"JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}
  assert launchers.options(by_hand | open_mpi("4", "2"))["num_processes"] == 3
