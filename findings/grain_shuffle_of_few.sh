#!/usr/bin/env bash
# Grain: a shuffled index of a dataset with few elements takes hundreds of times
# as long as one of a dataset with many.
#
# Expected: the cost of an element of `MapDataset.shuffle` does not depend on the
# length, or grows with it.
# Seen with grain 0.2.18: some 5 ms of CPU time for each element of a dataset of 4,
# 0.6 ms of 40, and .01 ms of 50,000. The product of length and time is about
# constant below 2^16: the permutation is one of at least that many numbers, in
# which a number is permuted again until it is within the length.
# A loader of the four or five photographs of one subject, as DreamBooth and
# textual inversion have, computes longer for an index than for a small image.
# Exits with 1 if this has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.13 -m venv "$folder/env"
"$folder/env/bin/pip" install -q grain==0.2.18
cat > "$folder/try.py" <<'P'
import sys
import time

import grain.python as grain


def milliseconds(length, count=40):
  """CPU time of an element, and a check that an epoch has each element once."""
  shuffled = grain.MapDataset.range(length).shuffle(seed=3)
  if length < 100:
    assert sorted(shuffled[i] for i in range(length)) == list(range(length))
  start = time.process_time()
  for index in range(count):
    shuffled[index % length]
  return 1e3 * (time.process_time() - start) / count


seen = {length: milliseconds(length) for length in (4, 40, 400, 50_000)}
for length, each in seen.items():
  print(f"{length} elements: {each:.3f} ms each")
if seen[4] < 50 * seen[50_000] or seen[40] < 10 * seen[50_000]:
  sys.exit("few elements no longer take much longer than many")
P
"$folder/env/bin/python" "$folder/try.py"
