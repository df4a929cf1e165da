"""A small T5: its vocabulary as a sentencepiece model, and its config."""

import pathlib
import struct

WORDS = ("a", "red", "fox", "in", "the", "snow", "painting", "of", "cat")
# Ids 0 to 2 as T5's; then words, parts of words and letters.
PIECES = [
  *(("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)),
  *((f"▁{word}", -3.0 - i / 8) for i, word in enumerate(WORDS)),
  *((part, -5.0) for part in ("s", "ing", "paint")),
  *((chr(c), -8.0 - c / 64) for c in range(ord("b"), ord("y") + 1)),
]
PIECES = list(dict(PIECES).items())
CONFIG = {
  "architectures": ["T5EncoderModel"],
  "d_ff": 24,
  "d_kv": 6,
  "d_model": 32,
  "dropout_rate": 0.1,
  "feed_forward_proj": "gated-gelu",
  "is_encoder_decoder": True,
  "layer_norm_epsilon": 1e-6,
  "model_type": "t5",
  "num_heads": 3,
  "num_layers": 2,
  "relative_attention_max_distance": 20,
  "relative_attention_num_buckets": 8,
  "vocab_size": 160,
}


def number(value: int) -> bytes:
  """A number in a protocol buffer."""
  parts = []
  while value > 127:
    parts.append(value & 127 | 128)
    value >>= 7
  return bytes([*parts, value])


def field(place: int, content: bytes) -> bytes:
  """A field of bytes in a protocol buffer."""
  return number(place << 3 | 2) + number(len(content)) + content


def sentencepiece_model(table: bytes = b"") -> bytes:
  """spiece.model of PIECES, with fields that are passed over."""
  kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
  pieces = b"".join(
    field(
      1,
      field(1, text.encode())
      + number(2 << 3 | 5)
      + struct.pack("<f", score)
      + number(3 << 3)
      + number(kinds.get(text, 1)),
    )
    for text, score in PIECES
  )
  trainer = field(2, number(3 << 3) + number(1) + number(4 << 3) + number(300))
  normalizer = field(3, field(1, b"nmt_nfkc") + (field(2, table) * bool(table)))
  return pieces + trainer + normalizer


def tokenizer_folder(folder: pathlib.Path) -> pathlib.Path:
  """Writes spiece.model alone."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "spiece.model").write_bytes(sentencepiece_model())
  return folder
