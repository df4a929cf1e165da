"""Weak scaling by plans: the same step for increasing numbers of chips.

  pip install libtpu
  python benchmarks/weak.py [--only v5e:2x2 ...]

Plans LDM-8's training step on ImageNet at a narrow width for TPUs from 4 to 256
chips, with the same number of images per chip, and over two slices. Each plan
compiles the real program (minutes). Prints a line of JSON per plan and then a
table: operations, memory and sent bytes per chip, and their ratios to the
first. Results are in benchmarks/plans.md.
"""

import argparse
import json
import subprocess
import sys

# Topology of a slice, and slices.
TOPOLOGIES = (
  ("v5e:2x2", 1),
  ("v5e:4x4", 1),
  ("v5e:8x8", 1),
  ("v5e:16x16", 1),
  ("v5e:4x4", 2),
  ("v5e:8x8", 2),
)
EACH = 4  # images per chip
CONFIG = [
  "--config=configs/ldm/imagenet256_f8.py",
  "--first_stage=configs/ldm/vq_f8.py",
  "--config.task.model.unet.channels=64",
  "--config.task.model.unet.blocks=1",
  "--config.task.model.unet.dtype=bfloat16",
  "--config.mesh.fsdp=4",
]


def chips(topology, slices):
  """Number of chips in all slices."""
  sides = [int(side) for side in topology.partition(":")[2].split("x")]
  count = slices
  for side in sides:
    count *= side
  return count


def plan(topology, slices):
  """The plan for a topology and a number of slices."""
  flags = [f"--topology={topology}", f"--slices={slices}"]
  flags.append(f"--batch={EACH * chips(topology, slices)}")
  command = [sys.executable, "-m", "ldm_jax", "plan", *CONFIG, *flags]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def sent(result):
  """Bytes of a chip's collectives, each line of the program counted once."""
  if result["collectives"] is None:
    sys.exit("libtpu cannot print this program; its collectives are unknown")
  return sum(size for _, size in result["collectives"].values())


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--only", nargs="*", help="topologies, such as v5e:2x2")
  only = flags.parse_args().only
  rows = []
  for topology, slices in TOPOLOGIES:
    if only and topology not in only:
      continue
    result = plan(topology, slices)
    print(json.dumps(result), flush=True)
    rows.append(result)
  print("| chips | slices | flops a chip | memory | sent | compiled in |")
  print("|---|---|---|---|---|---|")
  first = rows[0]
  for result in rows:
    values = (
      (result["flops_per_device"], first["flops_per_device"], 1e9, "G"),
      (result["total"], first["total"], 2**20, " MiB"),
      (sent(result), sent(first), 2**20, " MiB"),
    )
    cells = [
      f"{value / unit:.1f}{name} ({value / start:.2f})"
      for value, start, unit, name in values
    ]
    seconds = f"{result['compile_seconds']:.0f} s"
    devices = f"{result['devices']} | {result['slices']}"
    print(f"| {devices} | {' | '.join(cells)} | {seconds} |")


if __name__ == "__main__":
  main()
