"""push_to_hub(): uploads a run, a folder of weights or an adapter."""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.fields.arguments import check_request, checked
from ldm_jax.pretrained.hub.fetch import REPOSITORY
from ldm_jax.pretrained.hub.model_card import ModelCard
from ldm_jax.pretrained.hub.run_files import files_below, uploaded_files
from ldm_jax.pretrained.inspect import inspect
from ldm_jax.run import Run
from ldm_jax.runtime.monitoring.hyperparameters import hyperparameters
from ldm_jax.runtime.monitoring.metric_writer import read_metrics

CARD = "README.md"
REPLACED = ("checkpoints/", "samples/")  # of an earlier push
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
SHOWN = 4  # previews of a run, where no samples are given


@dataclasses.dataclass(frozen=True)
class PushRequest:
  """What to upload, and what its model card says.

  Attributes:
    source: a run folder; a folder of weights that `convert` wrote; or a file of
      an adapter or a model.
    repository: owner/model; created if there is none.
    license: an identifier of the hub, such as "apache-2.0".
    data: what it was trained on, in words, or as owner/dataset of the hub.
    base_model: owner/model that it was trained from.
    include_optimizer: whether a run's newest checkpoint is uploaded as it is,
      to resume training from. Otherwise only the parameters are that
      sampling uses: the average, where the run keeps one.
    samples: image files to show; a run's newest previews if there are none.
    private: of a repository that is created.
    revision: the branch to upload to.
    message: of the commit.
    trust: packages whose classes a run may name; see `Run.open`.

  Raises:
    ConfigError: a name is malformed, or a sample is not an image file.
  """

  source: str
  repository: str
  license: str = ""
  data: str = ""
  base_model: str = ""
  include_optimizer: bool = False
  samples: tuple[str, ...] = ()
  private: bool = False
  revision: str = "main"
  message: str = "Upload by ldm_jax"
  trust: tuple[str, ...] = ()

  def __post_init__(self):
    check_request(self)
    for name in ("repository", "base_model"):
      value = getattr(self, name)
      if not REPOSITORY.fullmatch(value) and (value or name == "repository"):
        raise ConfigError(f"{name} must be owner/model, got {value!r}")
    if not re.fullmatch(r"[a-z0-9.+-]*", self.license):
      raise ConfigError(
        "license must be an identifier of the hub, such as apache-2.0, mit or "
        f"openrail++; got {self.license!r}"
      )
    for file in self.samples:
      if not file.lower().endswith(IMAGES) or not os.path.isfile(file):
        raise ConfigError(f"samples must be image files, got {file!r}")
    names = [os.path.basename(file) for file in self.samples]
    if len(set(names)) < len(names):
      raise ConfigError(f"samples must have different names, got {names}")


@dataclasses.dataclass(frozen=True)
class PushResult:
  """What was uploaded.

  Attributes:
    url: of the repository.
    files: names in the repository.
  """

  url: str
  files: tuple[str, ...]


@checked
def push_to_hub(request: PushRequest) -> PushResult:
  """Uploads a model in one commit, with a model card.

  The hub's environment variables apply (HF_TOKEN, HF_ENDPOINT). A folder's own
  README.md is kept. Checkpoints and samples of an earlier push are removed.

  Raises:
    ConfigError: the source is no model, or the hub refuses the upload.
  """
  with config_errors(), contextlib.ExitStack() as stack:
    files, card = _content(request, stack)
    samples = {f"samples/{os.path.basename(f)}": f for f in _samples(request)}
    if card is not None:
      card = dataclasses.replace(card, samples=tuple(samples))
    elif request.license or request.data or request.samples:
      raise ConfigError(
        f"{request.source} has a {CARD}, which is uploaded as it is; state "
        "licence, data and samples there"
      )
    else:
      samples = {}
    url = _upload(request, files | samples, card)
  return PushResult(url, tuple(sorted({*files, *samples, CARD})))


def _content(
  request: PushRequest, stack: contextlib.ExitStack
) -> tuple[dict[str, str], ModelCard | None]:
  """Files by their names in the repository; None for a card that is there.

  Args:
    stack: at whose end temporary files are deleted.
  """
  source = request.source
  if not os.path.exists(source):
    raise ConfigError(f"there is no run, file or folder {source!r}")
  fields = (request.license, request.data, request.base_model)
  if Run.exists(source):
    run = Run.open(source, request.trust)
    description = inspect(source, trust=request.trust)
    settings = hyperparameters(source)
    values = (_metrics(source), settings)
    files = stack.enter_context(uploaded_files(run, request.include_optimizer))
    return files, ModelCard(request.repository, description, *fields, *values)
  if request.include_optimizer:
    raise ConfigError(f"include_optimizer is of runs; {source!r} is none")
  if os.path.isfile(source):
    description = {"kind": "adapter", "bytes": os.path.getsize(source)}
    card = ModelCard(request.repository, description, *fields)
    return {os.path.basename(source): source}, card
  description = inspect(source)
  files = files_below(source, "")
  if CARD in files:
    return files, None
  return files, ModelCard(request.repository, description, *fields)


def _metrics(folder: str) -> dict[str, Any]:
  """The newest value of every metric that is a finite number."""
  newest: dict[str, Any] = {}
  for line in read_metrics(folder):
    newest |= line
  is_number = lambda v: isinstance(v, int | float) and math.isfinite(v)
  return {name: value for name, value in newest.items() if is_number(value)}


def _samples(request: PushRequest) -> Sequence[str]:
  """The images to show."""
  if request.samples or not Run.exists(request.source):
    return request.samples
  previews = pathlib.Path(request.source, "previews")
  images = sorted(previews.glob("*.png"), key=os.path.getmtime)
  return [str(path) for path in images[-SHOWN:]]


def _upload(
  request: PushRequest, files: Mapping[str, str], card: ModelCard | None
) -> str:
  """Makes the commit; returns the URL of the repository.

  Raises:
    ConfigError: the package is missing, or the hub refuses.
  """
  try:
    import huggingface_hub as hub
  except ImportError:
    raise ConfigError(
      'pushing to the hub needs: pip install "ldm_jax[hub]"'
    ) from None
  repository, revision = request.repository, request.revision
  content: dict[str, Any] = dict(files)
  if card is not None:
    content[CARD] = card.text().encode()
  changes = [hub.CommitOperationAdd(n, data) for n, data in content.items()]
  try:
    api = hub.HfApi()
    url = api.create_repo(
      repository, private=request.private or None, exist_ok=True
    )
    if revision != "main":
      api.create_branch(repository, branch=revision, exist_ok=True)
    there = api.list_repo_files(repository, revision=revision)
    changes += [
      hub.CommitOperationDelete(name)
      for name in there
      if name.startswith(REPLACED) and name not in content
    ]
    api.create_commit(
      repository,
      changes,
      commit_message=request.message,
      revision=revision,
    )
  except Exception as error:  # the hub's, of many kinds, and the network's
    line = " ".join(str(error).split())[:200]
    raise ConfigError(
      f"{request.source} is not pushed to {repository}: {line}; to log in: "
      "hf auth login, or set HF_TOKEN"
    ) from error
  return str(url)
