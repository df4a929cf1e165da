"""Full-size transformers with 8-bit matrices: time and memory of loading.

  python benchmarks/quantization.py sd35_medium [--weight_dtype int8]
  python benchmarks/quantization.py flux1 [--folder FOLDER]

Writes a diffusers folder with the published config and names, and random normal
numbers in bfloat16 (FLUX.1: 24 GB), into a temporary folder; then a process of
its own loads it. Prints one line of JSON: gigabytes kept and at most resident,
seconds, and the relative errors of the matrices. `--call` also
runs the network once on its smallest latents.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

MODELS = {
  "tiny": {
    "_class_name": "FluxTransformer2DModel",
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "guidance_embeds": True,
  },
  "flux1": {"_class_name": "FluxTransformer2DModel", "guidance_embeds": True},
  "sd35_medium": {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "caption_projection_dim": 1536,
    "dual_attention_layers": list(range(13)),
  },
}
GIGABYTE = 1e9
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write(config: dict, folder: str) -> None:
  """The folder; its file is written through one block of random numbers."""
  import ml_dtypes

  from ldm_jax.pretrained import networks

  network = networks.ForeignNetwork(
    config, {}, networks.kind_of(config), "diffusers"
  )
  rows = networks.table_of(networks.build(config), network).rows
  shapes = {row.foreign_name: row.foreign_shape() for row in rows}
  header, offset = {}, 0
  for name, shape in shapes.items():
    end = offset + 2 * int(np.prod(shape))
    header[name] = {
      "dtype": "BF16", "shape": shape, "data_offsets": [offset, end],
    }  # fmt: skip
    offset = end
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  values = np.random.default_rng(0).standard_normal(2**24, np.float32)
  block = (0.02 * values).astype(ml_dtypes.bfloat16).tobytes()
  with open(os.path.join(folder, WEIGHTS), "wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for name, entry in header.items():
      begin, end = entry["data_offsets"]
      # A table of positions is fixed, not random.
      own = bytes(len(block)) if "pos_embed" in name else block
      for at in range(begin, end, len(block)):
        file.write(own[: min(len(block), end - at)])
  with open(os.path.join(folder, "config.json"), "w") as file:
    json.dump(config, file)


def resident() -> float:
  """The most memory of this process that was resident, in gigabytes."""
  with open("/proc/self/status") as file:
    (line,) = (each for each in file if each.startswith("VmHWM"))
  return int(line.split()[1]) * 1024 / GIGABYTE


def measure(folder: str, weight_dtype: str, computes: bool) -> None:
  """Loads the folder and prints the figures."""
  import jax

  import ldm_jax
  from ldm_jax.nn.operators.quantized_array import apply
  from ldm_jax.pretrained import networks
  from ldm_jax.pretrained.flux import flux_config
  from ldm_jax.pretrained.mmdit import mmdit_config

  before, start = resident(), time.perf_counter()
  module, params = ldm_jax.from_pretrained(
    folder, dtype="bfloat16", weight_dtype=weight_dtype
  )
  report = {
    "parameters": 0,
    "kept": sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / GIGABYTE,
    "seconds": time.perf_counter() - start,
    "resident_before": before,
    "resident_at_most": resident(),
  }
  with open(os.path.join(folder, "config.json")) as file:
    config = json.load(file)
  shapes = networks.abstract(module, config)["params"]
  report["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  if computes:
    is_flux = config["_class_name"].startswith("Flux")
    inputs = (flux_config if is_flux else mmdit_config).init_inputs(config)
    program = jax.jit(lambda params: apply(module, params, *inputs))
    compiled = program.lower(params).compile()
    memory = compiled.memory_analysis()
    report["temporaries"] = memory.temp_size_in_bytes / GIGABYTE
    start = time.perf_counter()
    out = np.asarray(compiled(params), np.float32)
    report["seconds_of_a_call"] = time.perf_counter() - start
    report["is_finite"] = bool(np.isfinite(out).all())
    report["resident_after_a_call"] = resident()
  print(json.dumps(report))


def main() -> None:
  flags = argparse.ArgumentParser(description=__doc__)
  flags.add_argument("model", choices=MODELS)
  flags.add_argument("--weight_dtype", default="int8")
  flags.add_argument("--call", action="store_true")
  flags.add_argument("--folder", help="to write to, and to keep")
  flags.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
  given = flags.parse_args()
  if given.measure:
    measure(given.folder, given.weight_dtype, given.call)
    return
  with tempfile.TemporaryDirectory() as temporary:
    folder = given.folder or temporary
    os.makedirs(folder, exist_ok=True)
    if not os.path.exists(os.path.join(folder, "config.json")):
      write(MODELS[given.model], folder)
    again = [sys.executable, __file__, given.model, "--measure"]
    again += ["--folder", folder, "--weight_dtype", given.weight_dtype]
    subprocess.run(again + ["--call"] * given.call, check=True)


if __name__ == "__main__":
  main()
