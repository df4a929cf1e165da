#!/usr/bin/env bash
# diffusers: with timestep_spacing="trailing", asking for 61 steps gives 62.
#
# Expected: set_timesteps(n) gives n times, the last of them 0 or more.
# Seen with diffusers 0.42.1, numpy 2.4.6, torch 2.13.0 (CPU): for 62 of the
# counts 1 to 1000 there are n + 1 times, and the last is -1. The times are
# numpy.arange(T, 0, -T / n), whose end is decided by rounding.
# Exits with 1 if this has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
"$folder/env/bin/python" - <<'P'
import diffusers
from diffusers import DDIMScheduler

odd = {}
for count in range(1, 1001):
  scheduler = DDIMScheduler(timestep_spacing="trailing")
  scheduler.set_timesteps(count)
  if len(scheduler.timesteps) != count:
    odd[count] = (len(scheduler.timesteps), int(scheduler.timesteps[-1]))

print(f"diffusers {diffusers.__version__}: {len(odd)} of 1000 counts differ")
print("asked: (given, last time):", dict(list(odd.items())[:5]))
is_as_seen = len(odd) == 62 and odd[61] == (62, -1)
is_as_seen &= all(found == (n + 1, -1) for n, found in odd.items())
raise SystemExit(0 if is_as_seen else 1)
P
