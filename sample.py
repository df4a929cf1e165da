"""Images from a run; see ldm_jax/commands/sample.py."""

from ldm_jax.commands.doors import enter
from ldm_jax.commands.sample import main

if __name__ == "__main__":
  enter(main)
