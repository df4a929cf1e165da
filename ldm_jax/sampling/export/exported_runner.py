"""Generates images with the exported sampler in this file's folder.

  python run.py --prompt "a small red circle" --num 4 --out images

Needs jax, flatbuffers, numpy, pillow and, for text, tokenizers; nothing of
ldm_jax. jax.export reads its files by flatbuffers, which jax does not install.
"""

import argparse
import contextlib
import json
import pathlib
import sys

import jax
import ml_dtypes  # comes with jax
import numpy as np
from jax import export

HERE = pathlib.Path(__file__).resolve().parent
DTYPES = {"F32": "float32", "F16": "float16", "I32": "int32", "U8": "uint8"}
DTYPES["BF16"] = ml_dtypes.bfloat16


def weights(path):
  """The arrays of a safetensors file."""
  if not path.exists():
    return {}
  data = np.memmap(path, np.uint8, "r")
  size = int(data[:8].view("<u8")[0])
  header = json.loads(bytes(data[8 : 8 + size]))
  header.pop("__metadata__", None)
  found = {}
  for name, entry in header.items():
    name_of_dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
    dtype = DTYPES[name_of_dtype]
    part = np.array(data[8 + size + begin : 8 + size + end])
    found[name] = part.view(dtype).reshape(entry["shape"])
  return found


def tokens(conditioner, texts):
  """Ids of every text: [b, l], or [b, encoders, l] for CLIP."""
  from tokenizers import Tokenizer

  encoders = []
  for name in conditioner["tokenizers"]:
    rows = Tokenizer.from_file(str(HERE / name)).encode_batch(texts)
    for text, row in zip(texts, rows, strict=True):
      if row.overflowing:
        print(
          f"note: the end of {text!r} is beyond its length", file=sys.stderr
        )
    encoders.append([row.ids for row in rows])
  ids = np.asarray(encoders, np.int32)
  return ids.swapaxes(0, 1) if conditioner["is_stacked"] else ids[0]


def side(conditioners, text, label, count, is_negative):
  """The input of every conditioner, for `count` images."""
  raw, nulls = {}, {}
  for conditioner in conditioners:
    if conditioner["kind"] == "text":
      array = tokens(conditioner, [text or ""] * count)
      is_null = not (text or "").strip()
      if conditioner["is_stacked"]:  # CLIP: unconditional only without any text
        is_null = is_negative and text is None
    elif conditioner["kind"] == "class":
      is_null = is_negative or label is None
      if label is not None and not 0 <= label < conditioner["classes"]:
        sys.exit(
          f"error: --class_label must be 0 to {conditioner['classes'] - 1}"
        )
      array = np.full(count, label or 0, np.int32)
    else:
      array = np.tile(np.float32(conditioner["rows"][is_negative]), (count, 1))
      is_null = False
    raw[conditioner["input_key"]], nulls[conditioner["input_key"]] = (
      array,
      np.full(count, is_null),
    )
  return {"raw": raw, "is_null": nulls}


def save(folder, images):
  """Writes PNGs under the next free numbers, and yields their paths.

  The file of a number is created exclusively, so that programs which write to
  one folder at once overwrite nothing.
  """
  from PIL import Image

  number = sum(1 for _ in folder.glob("*.png"))
  for image in images:
    file = None
    while file is None:
      path = folder / f"{number:05d}.png"
      number += 1
      with contextlib.suppress(FileExistsError):
        file = path.open("xb")
    with file:
      Image.fromarray(image).save(file, "PNG")
    yield path


def main():
  """Generates what the flags ask for."""
  settings = json.loads((HERE / "sampler.json").read_text())
  flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  flags.add_argument("--prompt", default="")
  flags.add_argument("--negative_prompt")
  flags.add_argument("--class_label", type=int)
  flags.add_argument("--num", type=int, default=1)
  flags.add_argument("--seed", type=int, default=0)
  flags.add_argument("--guidance", type=float, default=settings["guidance"])
  flags.add_argument("--out", default="images")
  given = flags.parse_args()
  if given.num < 1 or not 0 <= given.seed < 2**32:
    sys.exit("error: --num must be 1 or more, --seed 0 to 2**32 - 1")
  program = export.deserialize(bytearray((HERE / "sampler.jax").read_bytes()))
  conditioners, num = settings["conditioners"], given.num
  sides = (
    side(conditioners, given.prompt, given.class_label, num, False),
    side(conditioners, given.negative_prompt, None, num, True),
  )
  images = jax.jit(program.call)(
    weights(HERE / "weights.safetensors"),
    sides,
    np.uint32(given.seed),
    np.int32(0),
    np.float32([given.guidance, 0, 0, 1]),
  )
  folder = pathlib.Path(given.out)
  folder.mkdir(parents=True, exist_ok=True)
  for path in save(folder, np.asarray(images)):
    print(path)


if __name__ == "__main__":
  main()
