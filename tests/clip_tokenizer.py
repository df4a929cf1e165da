"""A small CLIP tokenizer, of letters and a few words, by transformers."""

import json
import pathlib

from transformers import CLIPTokenizer

WORDS = ("a", "red", "fox", "in", "the", "snow", "painting", "of", "cat")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer(folder: pathlib.Path, pad: str = END) -> CLIPTokenizer:
  """Writes vocab.json and merges.txt; returns transformers' CLIPTokenizer."""
  letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
  vocabulary = letters + [f"{c}</w>" for c in letters]
  merges = []
  for word in WORDS:
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while len(pieces) > 1:
      merges.append(f"{pieces[0]} {pieces[1]}")
      pieces = [pieces[0] + pieces[1], *pieces[2:]]
      vocabulary.append(pieces[0])
  vocabulary = list(dict.fromkeys([*vocabulary, BEGIN, END]))
  folder.mkdir(parents=True, exist_ok=True)
  ids = {word: i for i, word in enumerate(vocabulary)}
  (folder / "vocab.json").write_text(json.dumps(ids))
  lines = ["#version: 0.2", *dict.fromkeys(merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n")
  made = CLIPTokenizer(
    str(folder / "vocab.json"),
    str(folder / "merges.txt"),
    bos_token=BEGIN,
    eos_token=END,
    unk_token=END,
    pad_token=pad,
    model_max_length=77,
  )
  return made
