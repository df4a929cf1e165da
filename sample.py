"""Images from a run; see ldm_jax/cli/sample.py."""

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.sample import main

if __name__ == "__main__":
  run_command(main)
