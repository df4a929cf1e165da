"""Many clients of one server: throughput, latency, memory, nothing mixed up.

  python benchmarks/serving.py --model runs/glyphs_text [--clients 64]
      [--seconds 600] [--slots 8] [--steps 25]

Starts `ldm-jax serve` in a process of its own, and OpenAI's client in threads.
Every client asks for one image after the other, of one of 200 seeds; one
request in twenty is cancelled after a moment. Then the same with a single slot,
for a tenth of the time: one image at a time. At the end each seed is asked for
alone, and every image that any client got is compared with it, bit for bit.
Prints a line of JSON. Results are in benchmarks/serving.md.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import threading
import time

import openai

SEEDS = 200
COLOURS = ("red", "green", "blue", "yellow")


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
    began = time.monotonic()
    end = began + seconds
    threads = [
      threading.Thread(target=self.run, args=[str(i), end, cancels])
      for i in range(clients)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return len(self.latencies) / (time.monotonic() - began)


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("--model", required=True)
  flags.add_argument("--clients", type=int, default=64)
  flags.add_argument("--seconds", type=float, default=600)
  flags.add_argument("--slots", type=int, default=8)
  flags.add_argument("--steps", type=int, default=25)
  options = flags.parse_args()
  line = vars(options)
  with server(options.model, options.slots) as (process, url):
    load = Load(url, options.steps)
    load.all(options.clients, options.seconds / 20)  # compiles
    warm = resident(process)
    load.latencies.clear()
    rate = load.all(options.clients, options.seconds)
    line["megabytes"] = [round(warm), round(resident(process))]
    alone = {s: load.ask(load.client(600), s, "-") for s in load.images}
    wrong = [s for s, found in load.images.items() if found != {alone[s]}]
  ordered = sorted(load.latencies)
  line |= {
    "images": len(ordered),
    "images_per_second": round(rate, 2),
    "median_seconds": round(ordered[len(ordered) // 2], 3),
    "p95_seconds": round(ordered[int(0.95 * len(ordered))], 3),
    "cancelled": load.cancelled,
    "errors": load.errors[:3],
    "seeds_that_differ": wrong,
  }
  with server(options.model, 1) as (_, url):
    single = Load(url, options.steps)
    single.all(1, 10, cancels=False)
    single.latencies.clear()
    one = single.all(8, options.seconds / 10, cancels=False)
  line |= {"one_slot_per_second": round(one, 2), "ratio": round(rate / one, 2)}
  print(json.dumps(line))


if __name__ == "__main__":
  main()
