"""Seconds of a step of AdamW on a CPU by layer, as a table and a figure.

  python benchmarks/cpu_profile.py [--jobs stage_one stage_two] [--steps 5]

Compiles the steps of `benchmarks/cpu.py`, traces some of them with jax.profiler
and sums the seconds of XLA:CPU's kernels over both threads, of each kernel the
least of all steps. A kernel counts to the layer and the pass in which its
operation was traced. Prints a table in Markdown and writes
benchmarks/cpu_profile.png.
"""

import argparse
import collections
import pathlib
import re
import tempfile

import cpu
import jax
import matplotlib.pyplot as plt
from jax.profiler import ProfileData

FIGURE = pathlib.Path(__file__).with_suffix(".png")
PASSES = ("forward", "backward", "update")
# Of an operation's path, in this order: the first that is found.
PARTS = {
  "attention": r"head_attention|attention\w*/(vmap|transpose|reshape|reduce)",
  "dense layers": r"/(q|k|v|out|up|down|emb|time\w*)/",
  "norms": r"/norm\w*/|silu|gelu",
  "convolutions": r"conv|sample|shortcut|proj_",
}
_INSTRUCTION = r"\s+(?:ROOT )?%([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\("
_OTHER = "residuals and the rest"
_ADAMW = "AdamW"
_COPIES = "copies of parameters"


def operations(text):
  """Of each instruction of a compiled program: its opcode and its path.

  XLA drops the paths of products with small matrices, which are transforms of
  convolutions: they are "transform", with the path of the instruction that is
  scheduled before them.
  """
  paths, called, found = {}, {}, {}
  computation = None
  for line in text.splitlines():
    if not line.startswith(" "):
      header = re.match(r"(?:ENTRY )?%([\w.\-]+) ", line)
      computation = header[1] if header else computation
      before = ""
      continue
    named = re.match(_INSTRUCTION, line)
    if not named:
      continue
    path = re.search(r'op_name="([^"]*)"', line)
    if path:
      found[named[1]] = (named[2], path[1])
      paths.setdefault(computation, path[1])
      before = path[1]
    elif named[1].startswith("ynn_fusion"):
      found[named[1]] = ("transform", before)
    else:
      found[named[1]] = (named[2], "")
    if call := re.search(r"calls=%([\w.\-]+)", line):
      called[named[1]] = call[1]
  return {
    name: (opcode, path or paths.get(called.get(name), ""))
    for name, (opcode, path) in found.items()
  }


def kernel_seconds(folder):
  """Seconds of every kernel in one trace, without those it calls."""
  totals = collections.Counter()
  (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
  for plane in ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      if line.name == "python":
        continue
      events = sorted(
        (each.start_ns, -each.duration_ns, each.name) for each in line.events
      )
      around = []
      for start, duration, name in events:
        while around and around[-1][0] <= start:
          around.pop()
        if around:
          totals[around[-1][1]] += duration * 1e-9
        totals[name] -= duration * 1e-9
        around.append((start - duration, name))
  return totals


def place(name, opcode, path):
  """(part, pass) of a kernel."""
  if opcode == "copy" and not path:
    return _COPIES, "update"
  if path.count("/") == 1:
    return _ADAMW, "update"
  moment = "backward" if "transpose(jvp" in path else "forward"
  if opcode == "transform":
    return "convolutions: the rest", moment
  found = (part for part, words in PARTS.items() if re.search(words, path))
  part = next(found, _OTHER)
  if part in ("convolutions", "dense layers"):
    is_product = "dot" in name or "ynn" in name or opcode == "convolution"
    part += ": products" if is_product else ": the rest"
  return part, moment


def profile(job, steps):
  """Seconds of a step by (part, pass)."""
  step, state = cpu.jax_step(job)
  program = step.lower(state).compile()
  known = operations(program.as_text())
  state = jax.block_until_ready(program(state))
  traces = []
  for _ in range(steps):
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        state = jax.block_until_ready(program(state))
      traces.append(kernel_seconds(folder))
  table = collections.Counter()
  for name, (opcode, path) in known.items():
    seconds = min(trace[name] for trace in traces)
    if seconds > 0:
      table[place(name, opcode, path)] += seconds
  return table


def print_table(job, table):
  total = sum(table.values())
  print(f"\n{cpu.JOBS[job]}: {1000 * total:.0f} ms\n")
  print("| part | " + " | ".join(PASSES) + " | share |")
  print("|---" * (len(PASSES) + 2) + "|")
  for part in parts_of(table):
    values = [table[part, moment] for moment in PASSES]
    cells = [f"{1000 * value:.0f}" if value else "" for value in values]
    print(f"| {part} | {' | '.join(cells)} | {sum(values) / total:.0%} |")


def parts_of(table):
  """The parts, that of the longest time first."""
  sums = collections.Counter()
  for (part, _), seconds in table.items():
    sums[part] += seconds
  return [part for part, _ in sums.most_common()]


def draw(tables):
  """The tables as bars, one above the other."""
  figure, axes = plt.subplots(
    len(tables), figsize=(7, 2.6 * len(tables)), squeeze=False
  )
  for axis, (job, table) in zip(axes[:, 0], tables.items(), strict=True):
    parts = parts_of(table)[::-1]
    left = [0.0] * len(parts)
    for moment in PASSES:
      widths = [1000 * table[part, moment] for part in parts]
      axis.barh(parts, widths, left=left, label=moment)
      left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_title(cpu.JOBS[job], fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8)
  axes[-1, 0].set_xlabel("ms of both cores")
  figure.tight_layout()
  figure.savefig(FIGURE, dpi=80)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--jobs", nargs="*", default=cpu.STEPS, choices=cpu.STEPS)
  flags.add_argument("--steps", type=int, default=5)
  options = flags.parse_args()
  tables = {job: profile(job, options.steps) for job in options.jobs}
  for job, table in tables.items():
    print_table(job, table)
  draw(tables)


if __name__ == "__main__":
  main()
