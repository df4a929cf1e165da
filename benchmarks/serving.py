"""Many clients of one server: throughput, latency, memory, nothing mixed up.

  python benchmarks/serving.py --model runs/glyphs_text [--clients 64]
      [--seconds 600] [--slots 8] [--steps 25] [--rounds 5]

Starts `ldm-jax serve` in a process of its own, and OpenAI's client in threads.
Every client asks for one image after the other, of one of 200 seeds; one
request in twenty is cancelled after a moment. A second server has a single
slot, so it computes one image at a time; it gets the requests of eight clients,
so it never waits for one. The two are measured in turn, the second for a fifth
of the time, so that what else the machine does falls on both; the ratio is that
of the medians. At the end each seed is asked for alone, and every image that
any client got is compared with it, bit for bit. Prints a line of JSON. Results
are in benchmarks/serving.md.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import threading
import time

import openai

SEEDS = 200
COLOURS = ("red", "green", "blue", "yellow")
SINGLE = 8  # clients of the server with one slot


@contextlib.contextmanager
def server(model, slots):
  """The process and the address of a server."""
  command = [sys.executable, "-m", "ldm_jax", "serve", "--model", model]
  command += ["--port", "0", "--name", "m", "--slots", str(slots)]
  process = subprocess.Popen(
    [*command, "--no_page"], stdout=subprocess.PIPE, text=True
  )
  try:
    yield process, process.stdout.readline().strip()
  finally:
    process.terminate()
    process.wait()


def resident(process):
  """Resident memory in MB."""
  text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  (line,) = (each for each in text.splitlines() if each.startswith("VmRSS"))
  return int(line.split()[1]) / 1024


def cpu_seconds(process):
  """Seconds of all cores that a process has used."""
  fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().split()
  return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


class Load:
  """Clients that ask until a time is over."""

  def __init__(self, url, steps):
    self.url, self.steps = url, steps
    self.images = collections.defaultdict(set)
    self.latencies, self.errors = [], []
    self.cancelled = 0
    self.lock = threading.Lock()

  def client(self, timeout):
    return openai.OpenAI(
      base_url=f"{self.url}/v1", api_key="-", max_retries=0, timeout=timeout
    )

  def ask(self, client, seed, name):
    """Digest of the image of a seed."""
    extra = {"seed": seed, "steps": self.steps, "sampler": "dpmpp_2m"}
    answer = client.images.generate(
      prompt=f"a large {COLOURS[seed % 4]} circle", user=name, extra_body=extra
    )
    data = answer.data[0].b64_json
    return hashlib.sha256(data.encode()).hexdigest()

  def run(self, name, end, cancels):
    rng, patient = random.Random(name), self.client(600)
    hasty = self.client(0.1)
    while time.monotonic() < end:
      seed = rng.randrange(SEEDS)
      if cancels and rng.random() < 0.05:
        with contextlib.suppress(openai.APITimeoutError):
          self.ask(hasty, seed, name)
        with self.lock:
          self.cancelled += 1
        continue
      began = time.monotonic()
      try:
        digest = self.ask(patient, seed, name)
      except Exception as error:
        with self.lock:
          self.errors.append(repr(error))
        continue
      with self.lock:
        self.images[seed].add(digest)
        self.latencies.append(time.monotonic() - began)

  def all(self, clients, seconds, cancels=True):
    """Runs the clients; returns images per second."""
    began, before = time.monotonic(), len(self.latencies)
    end = began + seconds
    threads = [
      threading.Thread(target=self.run, args=[str(i), end, cancels])
      for i in range(clients)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return (len(self.latencies) - before) / (time.monotonic() - began)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--model", required=True)
  flags.add_argument("--clients", type=int, default=64)
  flags.add_argument("--seconds", type=float, default=600)
  flags.add_argument("--slots", type=int, default=8)
  flags.add_argument("--steps", type=int, default=25)
  flags.add_argument("--rounds", type=int, default=5)
  options = flags.parse_args()
  line, part = vars(options), options.seconds / options.rounds
  model, rates, single_rates = options.model, [], []
  with server(model, options.slots) as (process, url), server(model, 1) as one:
    load, single = Load(url, options.steps), Load(one[1], options.steps)
    load.all(options.clients, max(10, options.seconds / 20))  # compiles
    single.all(SINGLE, 10, cancels=False)
    warm = resident(process)
    load.latencies.clear()
    served, processes = len(single.latencies), (process, one[0])
    used = [-cpu_seconds(each) for each in processes]
    for _ in range(options.rounds):
      rates.append(load.all(options.clients, part))
      single_rates.append(single.all(SINGLE, part / 5, cancels=False))
    used = [a + cpu_seconds(b) for a, b in zip(used, processes, strict=True)]
    counts = len(load.latencies), len(single.latencies) - served
    line["megabytes"] = [round(warm), round(resident(process))]
    alone = {s: load.ask(load.client(600), s, "-") for s in load.images}
    wrong = [s for s, found in load.images.items() if found != {alone[s]}]
  ordered = sorted(load.latencies)
  rate, slow = statistics.median(rates), statistics.median(single_rates)
  line |= {
    "images": len(ordered),
    "images_per_second": [round(each, 2) for each in rates],
    "one_slot_per_second": [round(each, 2) for each in single_rates],
    "ratio": round(rate / slow, 2),
    "server_cpu_milliseconds": [
      round(1e3 * a / b, 1) for a, b in zip(used, counts, strict=True)
    ],
    "median_seconds": round(ordered[len(ordered) // 2], 3),
    "p95_seconds": round(ordered[int(0.95 * len(ordered))], 3),
    "cancelled": load.cancelled,
    "errors": load.errors[:3],
    "seeds_that_differ": wrong,
  }
  print(json.dumps(line))


if __name__ == "__main__":
  main()
