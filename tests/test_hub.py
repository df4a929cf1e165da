"""Repositories by name: from the hub's cache, or one line with the reason."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from networks import random_variables

import ldm_jax
from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.pretrained.hub.fetch import local_path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def info(home, *arguments):
  """The command in a process of its own: the hub reads its variables once."""
  return subprocess.run(
    [sys.executable, "-m", "ldm_jax.cli.info", *arguments],
    env=os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_repository_that_was_fetched_before_is_read_offline(tmp_path):
  repository = tmp_path / "hub" / "models--owner--small"
  vae = Autoencoder(ConvStack(8, (1, 2), 1, groups=4), 3)
  images, noise = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4, 4, 3))
  params = random_variables(vae, images, noise)
  folder = repository / "snapshots" / REVISION
  ldm_jax.save_pretrained(vae, params, str(folder))
  (repository / "refs").mkdir()
  (repository / "refs" / "main").write_text(REVISION)
  done = info(tmp_path, "owner/small")
  assert done.returncode == 0, done.stderr
  network = json.loads(done.stdout)["networks"]["vae"]
  assert network["class"] == "AutoencoderKL"
  assert network["parameters"] == sum(x.size for x in jax.tree.leaves(params))


def test_a_repository_that_cannot_be_fetched_is_one_line(tmp_path):
  done = info(tmp_path, "owner/absent")
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert "'owner/absent' does not exist and cannot be fetched" in done.stderr
  assert "give a local folder or file" in done.stderr


@pytest.mark.parametrize(
  "name", ["absent", "./absent/model", "/no/such/folder", "a/b/c"]
)
def test_a_path_that_is_no_repository_name_is_not_looked_up(name):
  with pytest.raises(ConfigError, match="there is no run, file or folder"):
    local_path(name)
