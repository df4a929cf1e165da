"""python -m ldm_jax: the same as the console script ldm-jax."""

from ldm_jax.cli.main import entry

if __name__ == "__main__":
  entry()
