"""Trains one experiment, either stage; see ldm_jax/cli/train.py."""

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.train import main

if __name__ == "__main__":
  run_command(main)
