"""The flag of commands that compile: whether programs are kept on disk."""

import argparse

from ldm_jax.cli.flags.parser import Parser


def add_cache_flag(flags: Parser) -> None:
  """Adds --no_cache."""
  flags.add_argument(
    "--no_cache",
    action="store_true",
    help="neither use nor keep compiled programs in the user's cache folder "
    "(JAX_COMPILATION_CACHE_DIR names another one)",
  )


def use_cache(flags: argparse.Namespace) -> None:
  """Does as the flag says, and removes it."""
  if not vars(flags).pop("no_cache"):
    from ldm_jax.measured_operators import use_measured_operators
    from ldm_jax.runtime.compilation_cache import use_compilation_cache

    use_measured_operators(use_compilation_cache())
