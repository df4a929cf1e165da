"""Whether full-size training steps fit on TPUs that are not present.

  pip install libtpu
  python benchmarks/plans.py [NAME ...]

Each plan compiles the real step and takes a quarter of an hour or more on two
CPU cores; without a name, all are compiled in turn. Prints the table of each
and its line of JSON. Results are in benchmarks/plans.md.
"""

import argparse
import os
import subprocess
import sys

KL_F8 = "--first_stage=configs/ldm/kl_f8.py"
UNET = "--config.task.model.unet."
HALF = f"{UNET}dtype=bfloat16"
REMAT = f"{UNET}remat=full"

KL_F8C16 = "--first_stage=configs/first_stages/kl_f8c16.py"
# Along all three axes of a torus libtpu gathers by sums; see plans.md.
SHARDED = "--config.mesh.fsdp=16"
FLUX = ("--config=configs/flux/mlperf_flux1.py", KL_F8C16, SHARDED)
SD35 = ("--config=configs/sd/sd35_medium.py", KL_F8C16, SHARDED)

# The config, the TPU, the batch and the mesh.
PLANS = {
  "kl_f8": [
    *("--config=configs/ldm/kl_f8.py", "--topology=v5e:4x4", "--batch=64"),
    *("--config.task.autoencoder.trunk.dtype=bfloat16", "--config.mesh.fsdp=4"),
  ],
  "imagenet_f4": [
    *("--config=configs/ldm/imagenet256_f4.py", "--topology=v5e:4x4"),
    *("--first_stage=configs/ldm/vq_f4.py", "--batch=256", HALF),
    "--config.mesh.fsdp=4",
  ],
  "sd1_v5e-16": [
    *("--config=configs/sd/sd1.py", KL_F8, "--topology=v5e:4x4"),
    *("--batch=128", HALF, REMAT, "--config.mesh.fsdp=4"),
  ],
  "sd1_v5e-256": [
    *("--config=configs/sd/sd1.py", KL_F8, "--topology=v5e:16x16"),
    *("--batch=2048", HALF, REMAT, "--config.mesh.fsdp=16"),
  ],
  "sd2_v5p-64": [
    *("--config=configs/sd/sd2_v768.py", KL_F8, "--topology=v5p:4x4x4"),
    *("--batch=512", HALF, REMAT, "--config.mesh.fsdp=8"),
  ],
  "sdxl_v6e-64": [
    *("--config=configs/sd/sdxl_base.py", KL_F8, "--topology=v6e:8x8"),
    *("--batch=256", HALF, REMAT, "--config.mesh.fsdp=64"),
    f"{UNET}attention.is_scanned=true",
  ],
  # Transformers: bfloat16, scanned blocks and remat are the configs' own.
  "flux1_256_v5p-128": [*FLUX, "--topology=v5p:4x4x4", "--batch=512"],
  "flux1_512_v5p-128": [
    *(*FLUX, "--topology=v5p:4x4x4", "--batch=256"),
    "--config.data.augment.size=512",
  ],
  "flux1_256_v6e-256": [*FLUX, "--topology=v6e:16x16", "--batch=1024"],
  "sd35_medium_v5p-128": [*SD35, "--topology=v5p:4x4x4", "--batch=256"],
  "sd35_medium_v6e-256": [*SD35, "--topology=v6e:16x16", "--batch=512"],
  "flux1_256_v6e-256_prepared": [
    *(*FLUX, "--topology=v6e:16x16", "--batch=1024", "--prepared=texts"),
  ],
  "sd35_medium_v6e-256_prepared": [
    *(*SD35, "--topology=v6e:16x16", "--batch=512", "--prepared=texts"),
  ],
}


def main():
  flags = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  flags.add_argument("names", nargs="*", help=", ".join(PLANS))
  names = flags.parse_args().names or PLANS
  for name in names:
    if name not in PLANS:
      sys.exit(f"no plan {name!r}; there are {', '.join(PLANS)}")
  for name in names:
    command = [sys.executable, "-m", "ldm_jax", "plan", *PLANS[name]]
    print(f"## {name}\n\n{' '.join(['python', *command[1:]])}\n", flush=True)
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    print(flush=True)
    if done.returncode:
      sys.exit(done.returncode)


if __name__ == "__main__":
  main()
