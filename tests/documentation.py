"""The code blocks of the documentation, and how small models run them."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
from typing import NamedTuple

import small_models

import ldm_jax
from ldm_jax.run import Run
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.request import GenerationRequest

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += [ROOT / "examples/README.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in PAGES if page.exists()]

FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", re.M | re.S)


class Block(NamedTuple):
  """One fenced block: its language, its title, its text, its line."""

  language: str
  title: str
  text: str
  line: int


def name_of(page: pathlib.Path) -> str:
  """The path of a page from the root, for test ids."""
  return page.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path, language: str) -> list[Block]:
  """All blocks of a language, also those inside tabs."""
  text, found = page.read_text(), []
  for match in FENCE.finditer(text):
    indent, kind, info, code = match.groups()
    if kind == language:
      lines = [line.removeprefix(indent) for line in code.splitlines()]
      title = re.search(r'title="([^"]*)"', info)
      line = text[: match.start()].count("\n") + 2
      code = "\n".join(lines) + "\n"
      found.append(Block(kind, title[1] if title else "", code, line))
  return found


def commands(page: pathlib.Path) -> list[list[str]]:
  """The commands `ldm-jax NAME ...` of a page, as lists of arguments."""
  found = []
  for block in blocks(page, "sh"):
    text = re.sub(r"\\\n *", " ", block.text)
    for line in text.splitlines():
      words = shlex.split(line, comments=True)
      quoted = [word for word in words if "ldm-jax " in word]
      for part in [words, *map(shlex.split, quoted)]:
        if "ldm-jax" in part and part[0] != "docker":
          found.append(part[part.index("ldm-jax") + 1 :])
  return found


def small(config: str) -> dict[str, str]:
  """Overrides that make a shipped experiment small, by its name."""
  name = pathlib.Path(config).stem
  if name in ("glyphs_autoencoder", "quickstart_autoencoder"):
    return small_models.ONE | {"task.optimizer.muon": "none"}
  if name in ("glyphs_text", "quickstart_text"):
    return small_models.TEXT
  if name.startswith(("glyphs", "quickstart")):
    return small_models.TWO
  return {}


def small_sampling(changed):
  """Published models make images of 16 x 16 pixels in at most 4 steps.

  A single file has no size of its own, and that of Stable Diffusion gives the
  small model's U-Net 65,536 latents.
  """
  prepare = Pipeline.prepare

  def prepare_small(pipe, request=None, **fields):
    if not isinstance(request, GenerationRequest):
      prompt = {} if request is None else {"prompt": request}
      request = GenerationRequest(**prompt, **fields)
    elif fields:
      request = dataclasses.replace(request, **fields)
    small = {"steps": min(request.steps, 4)}
    if request.height is None and request.image is None:
      small |= {"height": 16, "width": 16}
    if request.replay is None and not Run.exists(pipe.path):
      request = dataclasses.replace(request, **small)
    return prepare(pipe, request)

  changed.setattr(Pipeline, "prepare", prepare_small)


@contextlib.contextmanager
def small_training(patch):
  """`ldm_jax.train` for two steps, of a small network, from nothing."""
  train = ldm_jax.train

  def train_small(experiment, workdir, *, overrides=None, **options):
    if os.path.isdir(workdir):
      shutil.rmtree(workdir)
    name = experiment if isinstance(experiment, str) else "glyphs_text"
    fewer = {"steps": "2", "task.optimizer.decay_steps": "200"}
    overrides = dict(overrides or {}) | small(name) | fewer
    return train(experiment, workdir, overrides=overrides, **options)

  with patch.context() as changed:
    changed.setattr(ldm_jax, "train", train_small, raising=False)
    small_sampling(changed)
    yield
