"""Uploads a run, a folder of weights or an adapter to the Hugging Face hub.

  ldm-jax push runs/X owner/model --license apache-2.0 --data "20,000 icons"
  ldm-jax push style.safetensors owner/style --base_model owner/model

Writes a model card with data, config, metrics, samples and licence. The model
is opened by its name: ldm-jax sample --model=owner/model.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of push."""
  flags = Parser("ldm-jax push", __doc__)
  add = flags.add_argument
  add("source", metavar="SOURCE", help="a run, a folder of weights or a file")
  add("repository", metavar="OWNER/MODEL", help="created if there is none")
  add("--license", default="", metavar="ID", help="such as apache-2.0")
  add(
    "--data",
    default="",
    metavar="TEXT",
    help="what it was trained on, or owner/dataset",
  )
  add(
    "--base_model",
    default="",
    metavar="OWNER/MODEL",
    help="that it was trained from",
  )
  add(
    "--include_optimizer",
    action="store_true",
    help="a run's newest checkpoint as it is, to resume training from; by "
    "default the parameters that sampling uses",
  )
  add(
    "--samples",
    nargs="+",
    default=[],
    metavar="FILE",
    help="images to show (default: a run's newest previews)",
  )
  add("--private", action="store_true", help="if the repository is created")
  add("--revision", default="main", metavar="BRANCH", help="(default main)")
  add("--message", default="Upload by ldm_jax", help="of the commit")
  add("--trust", action="append", default=[], metavar="PACKAGE")
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Uploads and prints the address; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.pretrained.hub.push import PushRequest, push_to_hub

  names = PushRequest.__dataclass_fields__
  given = {n: v for n, v in vars(flags).items() if n in names}
  print(push_to_hub(PushRequest(**given)).url)
  return 0


if __name__ == "__main__":
  run_command(main)
