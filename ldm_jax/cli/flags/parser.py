"""argparse for every command: one-line errors and forgiving spelling."""

import argparse
import difflib
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import USAGE, CommandError
from ldm_jax.cli.streams import logging_setup


class Parser(argparse.ArgumentParser):
  """argparse with one-line errors; dashes and underscores are the same."""

  def __init__(self, prog: str, doc: str):
    what, _, more = doc.partition("\n\n")
    super().__init__(
      prog,
      description=what,
      epilog=more,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    log = self.add_argument_group("messages").add_mutually_exclusive_group()
    log.add_argument(
      "--verbose", action="store_true", help="debugging messages too"
    )
    log.add_argument(
      "--quiet", action="store_true", help="warnings and errors only"
    )

  def error(self, message: str) -> None:
    """Exits with code 2 and a one-line message that points to --help."""
    raise CommandError(f"{self.prog}: {message} (see --help)", USAGE)

  def read(
    self, arguments: Sequence[str], prefix: str | None = None
  ) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses; also returns flags that begin with --`prefix`., by their path."""
    ours, paths = [], {}
    for argument in arguments:
      name, equals, value = argument.partition("=")
      if prefix and name.startswith(f"--{prefix}."):
        if not equals:
          self.error(f"{name} needs a value: {name}=VALUE")
        paths[name.removeprefix(f"--{prefix}.").replace("-", "_")] = value
      elif name.startswith("--"):
        ours.append("--" + name[2:].replace("-", "_") + equals + value)
      else:
        ours.append(argument)
    known, unknown = self.parse_known_args(ours)
    if unknown:
      name = unknown[0].partition("=")[0]
      field = _config_flag(known.config, name[2:]) if prefix else None
      self.error(self._unknown(name, field))
    logging_setup.configure(known.verbose - known.quiet)
    return known, paths

  def _unknown(self, name: str, field: str | None) -> str:
    close = difflib.get_close_matches(name, self._option_string_actions, 1)
    meant = field or (close[0] if close else None)
    hint = f"; did you mean {meant}?" if meant else ""
    return f"unknown argument {name}{hint}"


def _config_flag(config: str, name: str) -> str | None:
  """The --config. flag of the config's field whose last name is `name`."""
  from ldm_jax import config as configs
  from ldm_jax.config_help import paths_named
  from ldm_jax.errors import ConfigError

  try:
    paths = paths_named(configs.load(config), name)
  except ConfigError:
    return None
  return f"--config.{paths[0]}" if paths else None
