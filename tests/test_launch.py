"""The files of launch/: known fields, obeyed variables, restarts."""

import json
import os
import pathlib
import re
import subprocess

import pytest
import yaml

from ldm_jax import config
from ldm_jax.cli import train
from ldm_jax.runtime.devices import launchers

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
# Names and types of fields, of the systems' published schemas.
FIELDS = json.loads((ROOT / "tests" / "manifest_fields.json").read_text())
JOBSET = FIELDS["jobset.x-k8s.io/v1alpha2 with Kubernetes 1.37"]
SKYPILOT = FIELDS["SkyPilot 0.14.1"]
TYPES = {
  "array": list,
  "boolean": bool,
  "integer": int,
  "object": dict,
  "string": str,
}
JOBSETS = ("jobset-tpu.yaml", "jobset-gpu.yaml")


def read(name):
  return yaml.safe_load((LAUNCH / name).read_text())


def faults(schema, value, place="$"):
  """Fields of a manifest that its system does not know, of other types."""
  if isinstance(schema, str):
    fits = schema == "any" or isinstance(value, TYPES[schema])
    return [] if fits else [f"{place} must be of the type {schema}"]
  if "items" in schema:
    return [
      line
      for i, each in enumerate(value)
      for line in faults(schema["items"], each, f"{place}[{i}]")
    ]
  missing = [name for name in schema["required"] if name not in value]
  found = [f"{place}.{name} is missing" for name in missing]
  for name, each in value.items():
    if name not in schema["fields"]:
      found.append(f"{place}.{name} is unknown")
    else:
      found += faults(schema["fields"][name], each, f"{place}.{name}")
  return found


@pytest.mark.parametrize(
  "name, schema",
  [*((name, JOBSET) for name in JOBSETS), ("skypilot.yaml", SKYPILOT)],
)
def test_manifests_have_the_fields_of_their_systems(name, schema):
  manifest = read(name)
  assert not faults(schema, manifest)
  assert faults(schema, manifest | {"extra": 1}) == ["$.extra is unknown"]


def test_faults_of_manifests_are_found():
  manifest = read("jobset-gpu.yaml")
  del manifest["kind"]
  manifest["spec"]["failurePolicy"]["maxRestart"] = 1
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  job["parallelism"] = "2"
  job["template"]["spec"]["containers"][0]["arg"] = []
  assert len(faults(JOBSET, manifest)) == 4


@pytest.mark.parametrize("name", JOBSETS)
def test_jobs_of_a_jobset_are_valid(name):
  """By the whole schema of Kubernetes, where it is installed."""
  validate = pytest.importorskip("kubernetes_validate").validate
  spec = read(name)["spec"]["replicatedJobs"][0]["template"]["spec"]
  job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
  validate(job | {"spec": spec}, "1.33", strict=True)


def test_skypilot_reads_its_file():
  sky = pytest.importorskip("sky")
  assert sky.Task.from_yaml(str(LAUNCH / "skypilot.yaml")).num_nodes == 2


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_starts_train_in_its_processes(name):
  manifest = read(name)
  (job,) = manifest["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  (container,) = spec["template"]["spec"]["containers"]
  assert spec["parallelism"] == spec["completions"]
  assert container["command"] == ["ldm-jax", "train"]
  flags, overrides = train.parser().read(container["args"], "config")
  assert flags.workdir.startswith(container["volumeMounts"][0]["mountPath"])
  config.resolve(str(ROOT / flags.config), overrides)
  failures = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
  assert failures["containerName"] == container["name"]
  if "env" in container:
    variables = {each["name"]: each.get("value") for each in container["env"]}
    host = f"{manifest['metadata']['name']}-{job['name']}-0-0"
    address = f"{host}.{manifest['metadata']['name']}:8476"
    assert variables["JAX_COORDINATOR_ADDRESS"] == address
    assert int(variables["JAX_NUM_PROCESSES"]) == spec["completions"]
    found = launchers.options(variables | {"JAX_PROCESS_ID": "1"})
    assert found["num_processes"] == 2 and found["process_id"] == 1


def commands(folder, **scripts):
  """An environment whose commands are these lines of a shell."""
  for name, text in scripts.items():
    path = folder / name.replace("_", "-")
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
  return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_machines_of_skypilot_are_processes(tmp_path):
  variables = {
    "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
  }
  env = commands(tmp_path, ldm_jax='env | grep ^JAX_; echo "$@"') | variables
  done = subprocess.run(
    ["bash", "-euc", read("skypilot.yaml")["run"]],
    capture_output=True,
    text=True,
    env=env,
  )
  found = dict(re.findall(r"^(JAX_\w+)=(.*)$", done.stdout, re.MULTILINE))
  found = launchers.options(found)
  assert found["coordinator_address"] == "10.0.0.5:8476"
  assert found["num_processes"] == 2 and found["process_id"] == 1
  command, *arguments = done.stdout.splitlines()[-1].split()
  flags, overrides = train.parser().read(arguments, "config")
  assert command == "train" and flags.workdir.startswith("/shared/")
  config.resolve(str(ROOT / flags.config), overrides)


@pytest.mark.parametrize(
  "code, is_requeued", [(0, 0), (2, 0), (143, 0), (138, 1)]
)
def test_a_batch_script_requeues_itself_when_its_time_is_over(
  tmp_path, code, is_requeued
):
  env = commands(
    tmp_path, srun=f'echo srun "$@"; exit {code}', scontrol='echo scontrol "$@"'
  )
  done = subprocess.run(
    ["bash", LAUNCH / "slurm.sbatch", "sd/sd1", "a folder", "--config.steps=3"],
    capture_output=True,
    text=True,
    env=env | {"SLURM_JOB_ID": "7"},
  )
  assert done.returncode == code and not done.stderr
  expected = (
    "srun ldm-jax train --config=sd/sd1 --workdir=a folder --config.steps=3\n"
  )
  assert done.stdout == expected + "scontrol requeue 7\n" * is_requeued
