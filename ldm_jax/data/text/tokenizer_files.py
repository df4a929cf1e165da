"""Reading the tokenizer folders of transformers.

CLIP's, BERT's and T5's tokenizers and any tokenizer.json are read by the
tokenizers library alone, with the ids of transformers 5; GPT-2's and others
need transformers.
"""

import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.text.pretrained_tokenizer import (
  SPECIAL_TOKENS,
  UNLIMITED,
  PretrainedTokenizer,
)
from ldm_jax.data.text.tokenizer_keys import (
  check_types,
  warn_of_unread_keys,
)
from ldm_jax.data.text.tokenizer_models import (
  MODELS,
  plain,
  set_limits,
  set_post_processor,
  with_sentinels,
)
from ldm_jax.errors import ConfigError
from ldm_jax.files.strict_json import read_object

PAIR = {"vocab.json", "merges.txt"}  # of CLIP and GPT-2: one needs the other
GENERIC = "TokenizersBackend"  # tokenizer.json as it is
# By the model_type of a config.json in the same folder.
_CLASSES = {
  "bert": "BertTokenizer",
  "clip": "CLIPTokenizer",
  "clipseg": "CLIPTokenizer",
  "t5": "T5Tokenizer",
}
_DEFAULTS = {
  "CLIPTokenizer": {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
  },
  "BertTokenizer": {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "do_lower_case": True,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
  },
  "T5Tokenizer": {
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
  },
  GENERIC: {},
}
# Keys of a tokenizer_config.json that describe where it was read from.
_DROPPED = {
  *("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file"),
  *("merges_file", "added_tokens_decoder", "add_bos_token", "add_eos_token"),
  *("init_inputs", "slow_tokenizer_class", "device_map"),
}


def read_tokenizer(path: pathlib.Path) -> PretrainedTokenizer:
  """The tokenizer in a folder of transformers, or of bare vocabulary files.

  No code of the folder is run.

  Raises:
    ConfigError: it holds no tokenizer, half of one, or one that only
      transformers reads, which is not installed.
  """
  names = set(os.listdir(path))
  for name in sorted(names):
    if (file := path / name).exists() and not (file.is_file() or file.is_dir()):
      raise ConfigError(f"{file} is a pipe or a device, expected a file")
  config = _read_json(path / "tokenizer_config.json")
  check_types(config)
  if "tokenizer.json" not in names and len(names & PAIR) == 1:
    (present,) = names & PAIR
    raise ConfigError(f"{path} has {present}, but not {min(PAIR - {present})}")
  kind = _class_name(path, names, config)
  if kind not in _DEFAULTS or _is_special(path, config, kind):
    return _by_transformers(path, names, kind)
  warn_of_unread_keys(path, kind, config)
  file = path / "tokenizer.json"
  stored = _read_json(file)
  if kind == "BertTokenizer" and not (config or stored):
    config = {"do_lower_case": _is_lower(path)}
  if kind == "T5Tokenizer":
    config = with_sentinels(config)
  config, added = _special_tokens(path, _DEFAULTS[kind] | config, stored)
  if kind == GENERIC:
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(file))
  else:
    texts = {key: plain(value) for key, value in config.items()}
    backend = MODELS[kind](path, stored, texts)
  set_limits(backend, stored)
  if backend.padding is not None:
    config.setdefault("pad_token", backend.padding["pad_token"])
  _add_special_tokens(backend, config, added)
  config = {
    key: plain(value) for key, value in config.items() if key not in _DROPPED
  }
  set_post_processor(backend, kind, config)
  config.setdefault("model_max_length", UNLIMITED)
  config |= {"backend": "tokenizers", "tokenizer_class": kind}
  return PretrainedTokenizer(backend, config)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object of a file, {} if it is missing; ConfigError if malformed."""
  try:
    return read_object(path, ConfigError)
  except FileNotFoundError:
    return {}


def _class_name(
  path: pathlib.Path, names: set[str], config: Mapping[str, Any]
) -> str:
  """transformers' class, by the files of a folder."""
  name = config.get("tokenizer_class")
  if name is not None:
    is_generic = name == "PreTrainedTokenizerFast"
    return GENERIC if is_generic else name.removesuffix("Fast")
  if "auto_map" in config:
    raise ConfigError(
      f"no tokenizer loads from {path}: it needs code of its own (auto_map), "
      "which is not run"
    )
  model = _read_json(path / "config.json").get("model_type")
  if model in _CLASSES:
    return _CLASSES[model]
  if "tokenizer.json" in names:
    return GENERIC
  if names >= PAIR:
    is_clip = "<|startoftext|>" in _read_json(path / "vocab.json")
    return "CLIPTokenizer" if is_clip else "GPT2Tokenizer"
  if "vocab.txt" in names:
    return "BertTokenizer"
  if "spiece.model" in names:
    return "T5Tokenizer"
  raise ConfigError(
    f"{path} holds no tokenizer; expected tokenizer.json, vocab.json with "
    f"merges.txt, vocab.txt or spiece.model; it has {sorted(names)[:6]}"
  )


def _is_lower(path: pathlib.Path) -> bool:
  """Whether a bare vocab.txt has no capitals, so that texts must have none."""
  tokens = (path / "vocab.txt").read_text(encoding="utf-8").split()
  return all(t.islower() or t[0] == "[" for t in tokens if t.isalpha())


def _is_special(
  path: pathlib.Path, config: Mapping[str, Any], kind: str
) -> bool:
  """Whether transformers would do more than is done here."""
  model = _read_json(path / "config.json").get("model_type")
  if model and _CLASSES.get(model, kind) != kind:
    return True
  if kind == GENERIC and not (path / "tokenizer.json").exists():
    return True
  own = [
    key
    for key, value in config.items()
    if key.endswith("_token")
    and key not in SPECIAL_TOKENS
    and isinstance(value, str)
  ]
  return bool(own) or isinstance(config.get("extra_special_tokens"), dict)


def _special_tokens(
  path: pathlib.Path, config: dict[str, Any], stored: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[int, Any]]:
  """The config with special tokens in it, and added tokens by their ids."""
  import tokenizers

  added = {}
  if "added_tokens_decoder" in config:
    for number, token in config["added_tokens_decoder"].items():
      added[int(number)] = tokenizers.AddedToken(**_fields(token))
  else:
    for key, value in _read_json(path / "special_tokens_map.json").items():
      if isinstance(value, dict):
        value = tokenizers.AddedToken(**_fields(value) | {"special": True})
      config[key] = value
    special = {str(plain(config.get(name))) for name in SPECIAL_TOKENS}
    for token, number in _read_json(path / "added_tokens.json").items():
      is_special = token in special
      added[number] = tokenizers.AddedToken(
        token, normalized=not is_special, special=is_special
      )
    for token in stored.get("added_tokens", ()):
      fields = {key: token[key] for key in token if key != "id"}
      added[token["id"]] = tokenizers.AddedToken(**fields)
  extra = config.pop("additional_special_tokens", None)
  if extra and not config.get("extra_special_tokens"):
    config["extra_special_tokens"] = extra
  known = {token.content: token for token in added.values()}
  for name in SPECIAL_TOKENS:
    value = config.get(name)
    if isinstance(value, dict):
      value = tokenizers.AddedToken(**_fields(value))
    if value is not None:
      config[name] = known.get(plain(value), value)
  return config, added


def _fields(token: Mapping[str, Any]) -> dict[str, Any]:
  return {key: token[key] for key in token if key != "__type"}


def _add_special_tokens(
  backend: Any, config: Mapping[str, Any], added: Mapping[int, Any]
) -> None:
  """Adds the tokens that the vocabulary lacks, in transformers' order."""
  import tokenizers

  there = backend.get_added_tokens_decoder().values()
  known = {repr(token) for token in there}
  tokens = [added[i] for i in sorted(added) if repr(added[i]) not in known]
  names = {token.content for token in (*there, *tokens)}
  special = [config.get(name) for name in SPECIAL_TOKENS]
  for token in [*special, *(config.get("extra_special_tokens") or [])]:
    is_new = token is not None and plain(token) not in names
    # Once more if it differs, such as in `normalized`: the last one counts.
    if is_new and token not in tokens:
      tokens.append(token)
  special_names = {plain(token) for token in special}
  for i, token in enumerate(tokens):
    if isinstance(token, str):
      tokens[i] = tokenizers.AddedToken(token, special=True)
    elif not token.special and token.content in special_names:
      token.special = True
  if tokens:
    backend.add_tokens(tokens)


def _by_transformers(
  path: pathlib.Path, names: set[str], kind: str
) -> PretrainedTokenizer:
  """Reads a folder by transformers, which saves it as a tokenizer.json."""
  # It prints on import that there is no PyTorch.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  try:
    import transformers
  except ImportError as error:
    raise ConfigError(
      f"the tokenizer in {path} is a {kind}, which only transformers reads; "
      "pip install transformers, or give a folder with a tokenizer.json"
    ) from error
  import tokenizers

  options = {"local_files_only": True}
  if names & {"tokenizer.json", "tokenizer_config.json"}:
    load = transformers.AutoTokenizer.from_pretrained
    options["trust_remote_code"] = False
  else:
    load = getattr(transformers, kind).from_pretrained
  tokenizer = load(str(path), **options)
  if getattr(tokenizer, "backend_tokenizer", None) is None:
    raise ConfigError(
      f"the tokenizer in {path} is a {type(tokenizer).__name__}, which has no "
      "fast form; expected one with a tokenizer.json"
    )
  with tempfile.TemporaryDirectory() as folder:
    tokenizer.save_pretrained(folder)
    saved = pathlib.Path(folder)
    backend = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))
    return PretrainedTokenizer(
      backend, _read_json(saved / "tokenizer_config.json")
    )
