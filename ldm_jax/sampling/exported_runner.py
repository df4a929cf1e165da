"""Draws with an exported sampler; it lies beside this file.

  python run.py --prompt "a small red circle" --num 4 --out pictures

Needs jax, numpy, pillow and, for text, tokenizers; nothing of ldm_jax.
"""

import argparse
import json
import pathlib
import sys

import jax
import ml_dtypes  # comes with jax
import numpy as np
from jax import export

HERE = pathlib.Path(__file__).resolve().parent
DTYPES = {"F32": "float32", "F16": "float16", "I32": "int32", "U8": "uint8"}


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
    word, (begin, end) = entry["dtype"], entry["data_offsets"]
    dtype = ml_dtypes.bfloat16 if word == "BF16" else DTYPES[word]
    part = np.array(data[8 + size + begin : 8 + size + end])
    found[name] = part.view(dtype).reshape(entry["shape"])
  return found


def tokens(ear, texts):
  """Ids of every text: [b, l], or [b, towers, l] where there are several."""
  from tokenizers import Tokenizer

  towers = []
  for name in ear["tokenizers"]:
    rows = Tokenizer.from_file(str(HERE / name)).encode_batch(texts)
    for text, row in zip(texts, rows, strict=True):
      if row.overflowing:
        print(
          f"note: the end of {text!r} is beyond its length", file=sys.stderr
        )
    towers.append([row.ids for row in rows])
  ids = np.asarray(towers, np.int32)
  return ids.swapaxes(0, 1) if ear["is_stacked"] else ids[0]


def side(ears, text, label, count, is_negative):
  """What every conditioner hears, for `count` images."""
  raw, nulls = {}, {}
  for ear in ears:
    if ear["kind"] == "text":
      array = tokens(ear, [text or ""] * count)
      is_null = not (text or "").strip()
      if ear["is_stacked"]:  # towers of CLIP: a null only if nothing is said
        is_null = is_negative and text is None
    elif ear["kind"] == "class":
      is_null = is_negative or label is None
      if label is not None and not 0 <= label < ear["classes"]:
        sys.exit(f"error: --class_label must be 0 to {ear['classes'] - 1}")
      array = np.full(count, label or 0, np.int32)
    else:
      array = np.tile(np.float32(ear["rows"][is_negative]), (count, 1))
      is_null = False
    raw[ear["input_key"]], nulls[ear["input_key"]] = (
      array,
      np.full(count, is_null),
    )
  return {"raw": raw, "is_null": nulls}


def main():
  """Draws what the flags ask for."""
  told = json.loads((HERE / "sampler.json").read_text())
  flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  flags.add_argument("--prompt", default="")
  flags.add_argument("--negative_prompt")
  flags.add_argument("--class_label", type=int)
  flags.add_argument("--num", type=int, default=1)
  flags.add_argument("--seed", type=int, default=0)
  flags.add_argument("--guidance", type=float, default=told["guidance"])
  flags.add_argument("--out", default="pictures")
  given = flags.parse_args()
  if given.num < 1 or not 0 <= given.seed < 2**32:
    sys.exit("error: --num must be 1 or more, --seed 0 to 2**32 - 1")
  program = export.deserialize(bytearray((HERE / "sampler.jax").read_bytes()))
  ears, num = told["ears"], given.num
  sides = (
    side(ears, given.prompt, given.class_label, num, False),
    side(ears, given.negative_prompt, None, num, True),
  )
  images = jax.jit(program.call)(
    weights(HERE / "weights.safetensors"),
    sides,
    np.uint32(given.seed),
    np.int32(0),
    np.float32([given.guidance, 0, 0, 1]),
  )
  from PIL import Image

  folder = pathlib.Path(given.out)
  folder.mkdir(parents=True, exist_ok=True)
  number = sum(1 for _ in folder.glob("*.png"))
  for image in np.asarray(images):
    while (path := folder / f"{number:05d}.png").exists():
      number += 1
    Image.fromarray(image).save(path)
    print(path)


if __name__ == "__main__":
  main()
