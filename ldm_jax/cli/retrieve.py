"""Embeds images and finds nearest neighbours, the conditioning of RDM.

  ldm-jax retrieve --config=configs/X.py \\
    --encoder=models/clip-vit-large-patch14 --out=runs/neighbours

writes the embeddings of the config's training source, and the indices of the
neighbours of each training and validation example. With --image,

  ldm-jax retrieve --image=cat.png --out=rows.npy \\
    --database=runs/neighbours --encoder=models/clip-vit-large-patch14

writes the embeddings nearest to an image, for `ldm-jax sample --neighbours`.

The encoder is CLIP's image encoder (a folder of transformers), or a run of an
autoencoder, whose latents are the embedding.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.cache_flag import add_cache_flag, use_cache
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of retrieve."""
  flags = Parser("ldm-jax retrieve", __doc__)
  add = flags.add_argument
  add("--encoder", required=True, metavar="FOLDER", help="embeds the images")
  add("--out", required=True, metavar="PATH", help="a folder, or an .npy file")
  add("--config", metavar="FILE", help="whose examples to search for")
  add("--database", metavar="DIR", help="written by an earlier search")
  add("--image", metavar="FILE", help="an image to search for")
  add("--k", type=int, default=4, help="neighbours (default 4)")
  add("--batch", type=int, default=64, help="images at a time (default 64)")
  add("--trust", action="append", default=[], metavar="PACKAGE")
  add_cache_flag(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags, searches and prints the files; returns the exit code."""
  flags, _ = parser().read(arguments)
  use_cache(flags)
  from ldm_jax.evaluation.retrieval import RetrievalRequest, retrieve

  fields = vars(flags)
  fields.pop("verbose"), fields.pop("quiet")
  fields["trust"] = tuple(fields["trust"])
  for path in retrieve(RetrievalRequest(**fields)).files:
    print(path)
  return 0


if __name__ == "__main__":
  run_command(main)
