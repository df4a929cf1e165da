"""Class labels that are given by name."""

import dataclasses
import difflib
import logging
from collections.abc import Sequence

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.hub.fetch import local_run
from ldm_jax.run import class_names
from ldm_jax.sampling.request import GenerationRequest

logger = logging.getLogger(__name__)

SHOWN = 10  # names in an error message


def with_class_number(
  request: GenerationRequest, names: Sequence[str]
) -> GenerationRequest:
  """The request with a number for the name in class_label.

  Args:
    names: of the model's classes; without any, those of the classifier's run.

  Raises:
    ConfigError: there is no class of that name.
  """
  label = request.class_label
  if label is None:
    return request
  if not names and request.classifier is not None:
    names = class_names(local_run(request.classifier))
  if isinstance(label, str):
    return dataclasses.replace(request, class_label=class_number(label, names))
  if str(label) in names and names.index(str(label)) != label:
    logger.warning(
      "class_label %d is a number here; the class named %r is %d",
      *(label, str(label), names.index(str(label))),
    )
  return request


def class_number(name: str, names: Sequence[str]) -> int:
  """The place of `name` among `names`; its case is ignored if it is unique.

  Raises:
    ConfigError: there is none.
  """
  if name in names:
    return names.index(name)
  folded = [each.casefold() for each in names]
  if folded.count(name.casefold()) == 1:
    return folded.index(name.casefold())
  if not names:
    raise ConfigError(
      f"class_label {name!r}: the names of this model's classes are not "
      "known; give a number, from 0"
    )
  close = difflib.get_close_matches(name.casefold(), folded, 1)
  hint = f"did you mean {names[folded.index(close[0])]!r}? " if close else ""
  shown = ", ".join(map(repr, names[:SHOWN]))
  more = ", ..." if len(names) > SHOWN else ""
  raise ConfigError(
    f"no class is named {name!r}; {hint}the {len(names)} classes are {shown}"
    f"{more} (ldm-jax info lists them)"
  )
