"""The tokenizers of CLIP, BERT and T5, built by the tokenizers library.

The same pipelines as transformers 5's CLIPTokenizer, BertTokenizer and
T5Tokenizer.
"""

import base64
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.text.sentencepiece_files import read_sentencepiece

SENTINELS = 100  # <extra_id_0> to <extra_id_99>, of T5's training


def plain(value: Any) -> Any:
  """The text of an AddedToken, also within a list; others as they are."""
  if isinstance(value, list):
    return [plain(each) for each in value]
  return getattr(value, "content", value)


def clip_bpe(
  path: pathlib.Path, stored: Mapping[str, Any], config: Mapping[str, Any]
) -> Any:
  """Lower-case byte-level BPE whose words end with </w> (Radford 2021)."""
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers
  from tokenizers import pre_tokenizers as splits

  if stored:
    vocabulary, merges = stored["model"]["vocab"], stored["model"]["merges"]
    merges = [
      tuple(merge.split(" ") if isinstance(merge, str) else merge)
      for merge in merges
    ]
  elif (path / "vocab.json").exists():
    vocabulary, merges = models.BPE.read_file(
      str(path / "vocab.json"), str(path / "merges.txt")
    )
  else:
    vocabulary, merges = {}, []
  model = models.BPE(
    vocab=vocabulary,
    merges=merges,
    continuing_subword_prefix="",
    end_of_word_suffix="</w>",
    fuse_unk=False,
    unk_token=config["unk_token"],
  )
  tokenizer = Tokenizer(model)
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(Regex(r"\s+"), " "),
      normalizers.Lowercase(),
    ]
  )
  pattern = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
  )
  tokenizer.pre_tokenizer = splits.Sequence(
    [
      splits.Split(Regex(pattern), behavior="removed", invert=True),
      splits.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def bert_wordpiece(
  path: pathlib.Path, stored: Mapping[str, Any], config: Mapping[str, Any]
) -> Any:
  """WordPiece whose continuations begin with ## (Devlin et al. 2019)."""
  from tokenizers import Tokenizer, decoders, models, normalizers
  from tokenizers import pre_tokenizers as splits

  file = path / "vocab.txt"
  if stored:
    vocabulary = stored["model"]["vocab"]
  else:
    vocabulary = models.WordPiece.read_file(str(file)) if file.exists() else {}
  tokenizer = Tokenizer(
    models.WordPiece(vocabulary, unk_token=config["unk_token"])
  )
  tokenizer.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=config["tokenize_chinese_chars"],
    strip_accents=config["strip_accents"],
    lowercase=config["do_lower_case"],
  )
  tokenizer.pre_tokenizer = splits.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece(prefix="##")
  return tokenizer


def t5_unigram(
  path: pathlib.Path, stored: Mapping[str, Any], config: Mapping[str, Any]
) -> Any:
  """Sentencepiece's unigrams over words after a ▁  (Kudo 2018)."""
  from tokenizers import Tokenizer, decoders, models, normalizers
  from tokenizers import pre_tokenizers as splits

  pieces, table = _t5_pieces(path, stored, config)
  tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
  if table:
    tokenizer.normalizer = normalizers.Precompiled(table)
  words = {"replacement": "▁", "prepend_scheme": "always", "split": True}
  tokenizer.pre_tokenizer = splits.Sequence(
    [splits.WhitespaceSplit(), splits.Metaspace(**words)]
  )
  tokenizer.decoder = decoders.Metaspace(**words)
  return tokenizer


def _t5_pieces(
  path: pathlib.Path, stored: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[list[tuple[str, float]], bytes]:
  """(text, score) by id, and the table of characters that are replaced."""
  if stored:
    pieces = [tuple(piece) for piece in stored["model"]["vocab"]]
    return pieces, _stored_table(stored)
  count = config.get("extra_ids", SENTINELS)
  sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(count))]
  file = path / "spiece.model"
  if not file.exists():
    names = ("pad_token", "eos_token", "unk_token")
    return [(config[name], 0.0) for name in names] + [("▁", -2.0)], b""
  found = read_sentencepiece(file)
  return found.pieces + sentinels, found.table


def _stored_table(stored: Mapping[str, Any]) -> bytes:
  """The table of characters of a tokenizer.json; empty without one."""
  normalizer = stored.get("normalizer") or {}
  for each in normalizer.get("normalizers", [normalizer]):
    if each.get("type") == "Precompiled":
      return base64.b64decode(each["precompiled_charsmap"])
  return b""


def with_sentinels(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config of T5's tokenizer with its sentinels as special tokens."""
  names = ("extra_special_tokens", "additional_special_tokens")
  given = next((config[name] for name in names if config.get(name)), [])
  if any("<extra_id_" in str(plain(token)) for token in given):
    return dict(config)
  count = config.get("extra_ids", SENTINELS)
  added = [f"<extra_id_{i}>" for i in range(count)]
  return {**config, "extra_special_tokens": [*given, *added]}


MODELS = {
  "CLIPTokenizer": clip_bpe,
  "BertTokenizer": bert_wordpiece,
  "T5Tokenizer": t5_unigram,
}


def set_post_processor(
  backend: Any, kind: str, config: Mapping[str, Any]
) -> None:
  """What adds begin and end tokens; that of a tokenizer.json is kept."""
  from tokenizers import processors

  pair = lambda name: (config[name], backend.token_to_id(config[name]))
  if kind == "CLIPTokenizer":
    backend.post_processor = processors.RobertaProcessing(
      pair("eos_token"), pair("bos_token"), False, False
    )
  elif kind == "BertTokenizer":
    begin, end = config["cls_token"], config["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
      single=f"{begin}:0 $A:0 {end}:0",
      pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
      special_tokens=[pair("cls_token"), pair("sep_token")],
    )
  elif kind == "T5Tokenizer":
    end = config["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
      single=f"$A {end}",
      pair=f"$A {end} $B {end}",
      special_tokens=[pair("eos_token")],
    )
  elif backend.post_processor is None:
    backend.post_processor = processors.TemplateProcessing(
      single="$A:0", pair="$A:0 $B:1", special_tokens=[]
    )


def set_limits(backend: Any, stored: Mapping[str, Any]) -> None:
  """Truncation and padding as a tokenizer.json has them."""
  import tokenizers

  if not (stored.get("truncation") or stored.get("padding")):
    return
  limits = tokenizers.Tokenizer(tokenizers.models.WordLevel())
  content = json.loads(limits.to_str())
  content |= {key: stored.get(key) for key in ("truncation", "padding")}
  limits = tokenizers.Tokenizer.from_str(json.dumps(content))
  if limits.truncation is not None:
    backend.enable_truncation(**limits.truncation)
  if limits.padding is not None:
    backend.enable_padding(**limits.padding)
