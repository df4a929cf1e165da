"""The packages of a wheel: ldm_jax, with configs/ inside it.

configs/ is installed as ldm_jax/configs, where `ldm_jax.config.load` finds an
experiment by name (`--config=sd/sd1`) from any folder. Everything else is
declared in setup.cfg.
"""

from setuptools import find_packages, setup

setup(
  packages=[
    *find_packages(include=["ldm_jax", "ldm_jax.*"]),
    "ldm_jax.configs",
    "ldm_jax.configs.ldm",
    "ldm_jax.configs.sd",
  ],
  package_dir={"ldm_jax.configs": "configs"},
)
