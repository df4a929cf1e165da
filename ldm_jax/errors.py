"""The exceptions of ldm_jax: one hierarchy, by cause.

  LdmJaxError            everything this package raises on purpose
    ConfigError          a setting, path or request that cannot be used
    DataError            a data set that is empty, inconsistent or too damaged
    ImageError           one image that cannot be used
    WeightsError         a file of foreign weights that cannot be used
      NonFiniteWeights   ... because a tensor holds NaN or infinity
    DamagedFile          a file of a run that is not what was written
    NonFinite            a loss, gradient, parameter or image became NaN
    SaveFailed           a checkpoint could not be written
    TooLarge             no device has enough memory

Each also derives from the built-in exception a caller would expect
(`ValueError`, `OSError`, ...). Messages are one line: what was got, what is
needed, what to try.
"""

import contextlib
from collections.abc import Iterator


class LdmJaxError(Exception):
  """Base class of the exceptions of this package."""


class ConfigError(LdmJaxError, ValueError):
  """A setting, path or request that cannot be used."""


class DataError(LdmJaxError, ValueError):
  """A data set is empty, inconsistent, or has too many bad examples."""


class ImageError(LdmJaxError, ValueError):
  """An image that cannot be used: `path`, `detail`, a `kind` to count by.

  Kinds: unreadable, not_an_image, too_large, truncated, corrupt, animated,
  non_finite, unsupported, mislabelled.
  """

  def __init__(self, path: str, kind: str, detail: str):
    super().__init__(path, kind, detail)
    self.path, self.kind, self.detail = path, kind, detail

  def __str__(self) -> str:
    line = f"{self.path}: {self.kind} image: {self.detail}"
    return " ".join(line.split())


class WeightsError(LdmJaxError, ValueError):
  """A file of foreign weights that cannot be used, by file or tensor."""


class NonFiniteWeights(WeightsError):
  """A tensor of a weight file holds a value that is not finite."""


class DamagedFile(LdmJaxError, RuntimeError):
  """A file of a run is not what was written."""


class NonFinite(LdmJaxError, ArithmeticError):
  """A loss, gradient, parameter or image is not finite."""


class SaveFailed(LdmJaxError, OSError):
  """A checkpoint could not be written."""


class TooLarge(LdmJaxError, ValueError):
  """No device has enough memory."""


@contextlib.contextmanager
def config_errors(*kinds: type[LdmJaxError]) -> Iterator[None]:
  """Converts a plain ValueError of the block to a `ConfigError`.

  For code that builds objects out of a user's settings, whose constructors
  raise ValueError. Exceptions of this package pass unchanged, except those of
  `kinds`: a data set's error is a wrong setting where one file was given.
  """
  try:
    yield
  except kinds as error:
    raise ConfigError(str(error)) from error
  except LdmJaxError:
    raise
  except ValueError as error:
    raise ConfigError(str(error)) from error
