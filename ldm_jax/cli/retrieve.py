"""Embeds pictures and finds the nearest of them: what RDM conditions on.

  python -m ldm_jax.cli.retrieve --config=configs/X.py \\
    --encoder=models/clip-vit-large-patch14 --out=runs/neighbours

writes the embeddings of the config's training source, and which of them are
nearest to each of its training and validation examples. Without --config,

  python -m ldm_jax.cli.retrieve --image=cat.png --out=rows.npy \\
    --database=runs/neighbours --encoder=models/clip-vit-large-patch14

writes the embeddings nearest to a picture, for sample.py --neighbours.

The encoder is CLIP's image tower, as a folder of transformers, or a run of
stage one, whose latents are the embedding.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of the search."""
  flags = Parser("python -m ldm_jax.cli.retrieve", __doc__)
  add = flags.add_argument
  add("--encoder", required=True, metavar="FOLDER", help="what embeds pictures")
  add("--out", required=True, metavar="PATH", help="a folder, or an .npy file")
  add("--config", metavar="FILE", help="whose examples to search for")
  add("--database", metavar="DIR", help="what an earlier search wrote")
  add("--image", metavar="FILE", help="the picture to search for")
  add("--k", type=int, default=4, help="neighbours (default 4)")
  add("--batch", type=int, default=64, help="pictures at a time (default 64)")
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and searches; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.evaluation import retrieval  # brings jax

  return retrieval.retrieve(flags)


if __name__ == "__main__":
  run_command(main)
