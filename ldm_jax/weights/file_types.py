"""The type of a weight file, by its first bytes."""

from ldm_jax.errors import WeightsError

# torch/serialization.py: MAGIC_NUMBER.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

TORCH_ZIP = "torch zip"
TORCH_LEGACY = "torch legacy"
SAFETENSORS = "safetensors"
FLAX = "Flax msgpack"

STARTS = {
  b"PK\x03\x04": TORCH_ZIP,
  b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little"): TORCH_LEGACY,
}
EXPLANATIONS = {
  b"version https://git-lfs": "this is a git-lfs pointer; run `git lfs pull`",
  b"<": "this is a web page, not a weight file; download it again",
  b"GGUF": "this is a GGUF file; save it as safetensors",
  b"PK": "this is an empty or split zip; download it again",
}
START_LENGTH = 64


def file_type(start: bytes) -> str | None:
  """One of the four types, by the first START_LENGTH bytes, or None."""
  for prefix, kind in STARTS.items():
    if start.startswith(prefix):
      return kind
  if start[8:9] == b"{" and not any(start[5:8]):  # a length below 2^40, JSON
    return SAFETENSORS
  # msgpack maps: of 1 to 15 entries, with 16 bits and with 32 bits of count.
  if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
    return FLAX
  return None


def explain(start: bytes) -> str | None:
  """What to do with a file of another type, where that is known."""
  for prefix, advice in EXPLANATIONS.items():
    if start.startswith(prefix):
      return advice
  return None


def raise_wrong_type(start: bytes, size: int, needed: str):
  """Raises an error that says what the file is.

  Raises:
    WeightsError: always.
  """
  kind = file_type(start)
  if kind:
    raise WeightsError(f"this is a {kind} file; a {needed} file is needed")
  if advice := explain(start):
    raise WeightsError(advice)
  raise WeightsError(
    f"not a {needed} file: it is {size} bytes long and starts with "
    f"{start[:8]!r}"
  )
