"""Trains one experiment, either stage; see ldm_jax/commands/train.py."""

from ldm_jax.commands.doors import enter
from ldm_jax.commands.train import main

if __name__ == "__main__":
  enter(main)
