"""Generates images: `ldm-jax sample`."""

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.sample import main

if __name__ == "__main__":
  run_command(main)
