"""Generates images with the exported sampler in this file's folder.

  python run.py --prompt "a small red circle" --num 4 --out images

Needs jax, flatbuffers, numpy, pillow and, for text, tokenizers; nothing of
ldm_jax. jax.export reads its files by flatbuffers, which jax does not install.
"""

import argparse
import contextlib
import json
import math
import pathlib
import re
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


def note(text):
  """Writes a line for the user."""
  print(f"note: {text}", file=sys.stderr)


SYNTAX = {
  "AND": r"\bAND\b",
  "[a:b:0.5]": r"\[[^\[\]]*[:|][^\[\]]*\]",
  "(weights)": r"(?<!\\)\(.+\)|(?<!\\)\[[^:|]+\]",
  "<lora:x:0.8>": r"<(lora|lyco|hypernet):",
}


def tokens(conditioner, text):
  """Ids of a text: [1, l], or [1, encoders, l] for CLIP, in whole chunks."""
  from tokenizers import Tokenizer

  is_clip, encoders = conditioner["is_stacked"], []
  for name in conditioner["tokenizers"]:
    tokenizer = Tokenizer.from_file(str(HERE / name))
    parts = re.split(r"\s*\bBREAK\b\s*", text) if is_clip else [text]
    if len(parts) > 1 and not parts[-1].strip():
      del parts[-1]  # nothing after the last one
    rows = [tokenizer.encode(part.strip() if is_clip else part)
            for part in parts]  # fmt: skip
    if is_clip:  # what is too long for a chunk is in further ones
      rows = [chunk for row in rows for chunk in (row, *row.overflowing)]
      most = conditioner.get("max_chunks") or len(rows)
      if len(rows) > most:
        note(f"CLIP reads the beginning of {text!r}")
      rows = rows[:most]
    elif rows[0].overflowing:
      note(f"the end of {text!r} is beyond its length")
    encoders.append([row.ids for row in rows])
  most = max(map(len, encoders))
  for rows, name in zip(encoders, conditioner["tokenizers"], strict=True):
    empty = Tokenizer.from_file(str(HERE / name)).encode("").ids
    rows.extend([empty] * (most - len(rows)))
  ids = np.asarray(encoders, np.int32).reshape(1, len(encoders), -1)
  return ids if is_clip else ids[:, 0]


def same_length(settings, sides):
  """The chunks of both sides' texts, repeated to one number, and that."""
  names = [c["input_key"] for c in settings["conditioners"]
           if c["kind"] == "text" and c["is_stacked"]]  # fmt: skip
  if not names:
    return 1
  size, (key,) = settings["tokens_per_chunk"], names
  counts = [side["raw"][key].shape[-1] // size for side in sides]
  chunks, most = math.lcm(*counts), settings["chunks"]
  if chunks > most:
    sys.exit(
      f"error: the prompts have {counts[0]} and {counts[1]} chunks, which "
      f"needs a sampler of {chunks}; this one was exported with {most}: "
      f"shorten them, or export with --chunks {chunks}"
    )
  for side, count in zip(sides, counts, strict=True):
    side["raw"][key] = np.tile(side["raw"][key], chunks // count)
  return chunks


def check_syntax(texts):
  """Names what `ldm-jax sample` reads in a prompt and this program does not."""
  for text in filter(None, texts):
    found = [name for name, form in SYNTAX.items() if re.search(form, text)]
    if found:
      note(f"{', '.join(found)} in {text!r} is read as letters here")


def class_number(conditioners, text):
  """The number of a class, of which `text` is the number or the name."""
  names = next(
    (c.get("names", []) for c in conditioners if c["kind"] == "class"), []
  )
  if text is None or text in names:
    return text and names.index(text)
  try:
    return int(text)
  except ValueError:
    known = ", ".join(names) or "known by numbers only"
    sys.exit(f"error: no class is named {text!r}; the classes are {known}")


def side(conditioners, text, label, count, is_negative):
  """The input of every conditioner, for `count` images."""
  raw, nulls = {}, {}
  for conditioner in conditioners:
    if conditioner["kind"] == "text":
      array = np.repeat(tokens(conditioner, text or ""), count, 0)
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
  flags.add_argument("--class_label", help="a number or a name")
  flags.add_argument("--num", type=int, default=1)
  flags.add_argument("--seed", type=int, default=0)
  flags.add_argument("--guidance", type=float, default=settings["guidance"])
  flags.add_argument("--out", default="images")
  given = flags.parse_args()
  if given.num < 1 or not 0 <= given.seed < 2**64:
    sys.exit("error: --num must be 1 or more, --seed 0 to 2**64 - 1")
  if any(c["kind"] == "text" for c in settings["conditioners"]):
    check_syntax((given.prompt, given.negative_prompt))
  conditioners, num = settings["conditioners"], given.num
  label = class_number(conditioners, given.class_label)
  sides = (
    side(conditioners, given.prompt, label, num, False),
    side(conditioners, given.negative_prompt, None, num, True),
  )
  chunks = same_length(settings, sides)
  file = HERE / ("sampler.jax" if chunks == 1 else f"sampler_{chunks}.jax")
  program = export.deserialize(bytearray(file.read_bytes()))
  images = jax.jit(program.call)(
    weights(HERE / "weights.safetensors"),
    sides,
    np.array([given.seed >> 32, given.seed % 2**32], np.uint32),
    np.int32(0),
    np.float32([given.guidance, 0, 0, 1]),
  )
  folder = pathlib.Path(given.out)
  folder.mkdir(parents=True, exist_ok=True)
  for path in save(folder, np.asarray(images)):
    print(path)


if __name__ == "__main__":
  main()
