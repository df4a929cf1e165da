"""A model behind a web page and an HTTP API."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable

from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import check_request
from ldm_jax.pretrained.open_model import LoadOptions
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.preview_decoder import PreviewDecoder
from ldm_jax.serving.limits import Limits
from ldm_jax.serving.worker import Worker

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeRequest:
  """What to serve, and to whom.

  Attributes:
    model: a run, a diffusers folder, a single file, or owner/model.
    options: of reading it.
    lora_folder: of the LoRAs that prompts may name; None for none.
    controlnets: folders of ControlNets that the page offers.
    preview_decoder: a small autoencoder of the model's latents that decodes
      previews: a run, a folder, a file, or owner/model. None takes a linear
      map of the latents.
    name: of the model for clients; by default the last part of its path.
    host: address to bind to; 127.0.0.1 is this machine alone.
    port: 0 takes a free one.
    slots: images that are denoised together.
    limits: of what clients may ask for.
    api_key: a file whose first line every client must know; None for none.
    allowed_origins: of pages whose scripts may read answers (CORS).
    has_page: whether there is a web page next to the API.
    drain: seconds for which requests are finished at the end.

  Raises:
    ConfigError: a value is out of its range.
  """

  model: str
  options: LoadOptions = LoadOptions()
  lora_folder: str | os.PathLike | None = None
  controlnets: tuple[str, ...] = ()
  preview_decoder: str | None = None
  name: str | None = None
  host: str = "127.0.0.1"
  port: int = 7860
  slots: int = 4
  limits: Limits = Limits()
  api_key: str | os.PathLike | None = None
  allowed_origins: tuple[str, ...] = ()
  has_page: bool = True
  drain: int = 60

  def __post_init__(self):
    check_request(self)
    if not 0 <= self.port < 2**16:
      raise ConfigError(f"port must be 0 to 65535, got {self.port}")
    if not 1 <= self.slots <= 1024:
      raise ConfigError(f"slots must be 1 to 1024, got {self.slots}")
    if self.drain < 0:
      raise ConfigError(f"drain must be 0 or more, got {self.drain}")


def serve(
  request: ServeRequest, is_ready: Callable[[str], None] = lambda url: None
) -> None:
  """Serves until SIGTERM or SIGINT, then finishes what was submitted.

  Args:
    is_ready: called with the address once it answers.

  Raises:
    ConfigError: the extra `web` is not installed, the key cannot be read, the
      address is in use, the model cannot be opened, or the preview decoder
      does not fit it.
  """
  try:
    from ldm_jax.serving.app import create_app
    from ldm_jax.serving.http_server import run_server

    if request.has_page:
      from ldm_jax.serving.appearance import mount_page
      from ldm_jax.serving.page import build_page
  except ImportError as error:
    raise ConfigError(
      f"serve needs the extra web ({error}); pip install 'ldm_jax[web]'"
    ) from error
  key = None if request.api_key is None else read_key(request.api_key)
  pipeline = Pipeline.open(request.model, request.options)
  pipeline.lora_folder = request.lora_folder
  decoder = None
  if request.preview_decoder is not None:
    trust = request.options.trust
    decoder = PreviewDecoder.open(request.preview_decoder, trust)
  worker = Worker(pipeline, request.slots, request.limits, decoder)
  name = request.name or pathlib.PurePath(request.model).name
  app = create_app(
    worker, name, api_key=key, allowed_origins=request.allowed_origins
  )
  if request.has_page:
    app = mount_page(app, build_page(worker, request.controlnets))
  host, port, drain = request.host, request.port, request.drain
  worker.start()
  try:
    run_server(app, host, port, drain=drain, is_ready=is_ready)
  finally:
    worker.stop(timeout=float(request.drain))


def read_key(path: str | os.PathLike) -> str:
  """The first line of a file, without white space around it.

  Raises:
    ConfigError: it cannot be read, or is empty.
  """
  try:
    with open(path, encoding="utf-8") as file:
      key = file.readline(4096).strip()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"the key in {os.fspath(path)}: {error}") from error
  if not key:
    raise ConfigError(f"{os.fspath(path)} is empty; write a key into it")
  return key
