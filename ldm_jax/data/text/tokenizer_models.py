"""The tokenizers of CLIP and BERT, built by the tokenizers library.

The same pipelines as transformers 5's CLIPTokenizer and BertTokenizer.
"""

import pathlib
from collections.abc import Mapping
from typing import Any


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


MODELS = {"CLIPTokenizer": clip_bpe, "BertTokenizer": bert_wordpiece}


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
  elif backend.post_processor is None:
    backend.post_processor = processors.TemplateProcessing(
      single="$A:0", pair="$A:0 $B:1", special_tokens=[]
    )
