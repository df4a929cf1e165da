"""The keys of a tokenizer_config.json: obeyed, harmless, or named."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.text.pretrained_tokenizer import SPECIAL_TOKENS
from ldm_jax.errors import ConfigError

logger = logging.getLogger(__name__)

MOST_SENTINELS = 1000  # T5 has 100
_OBEYED = {
  *SPECIAL_TOKENS,
  *("added_tokens_decoder", "additional_special_tokens"),
  *("extra_special_tokens", "tokenizer_class", "auto_map", "extra_ids"),
  "clean_up_tokenization_spaces",  # in decoding
}
_OBEYED_BY_BERT = {"do_lower_case", "strip_accents", "tokenize_chinese_chars"}
# Where the tokenizer was read from, and what fits no prompt. The lengths are
# those of the text encoder; its images and chats are of other models.
_HARMLESS = {
  *("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file"),
  *("merges_file", "init_inputs", "slow_tokenizer_class", "device_map"),
  *("model_max_length", "max_len", "processor_class", "backend", "is_local"),
  *("local_files_only", "legacy", "chat_template", "model_input_names"),
  *("max_length", "stride", "pad_to_multiple_of", "pad_token_type_id"),
  *("truncation_strategy", "from_slow", "use_fast"),
}
# Values at which a key asks for nothing else than what is done.
_DEFAULTS = {
  "add_prefix_space": (False,),
  "add_bos_token": (True,),
  "add_eos_token": (True,),
  "do_lower_case": (True,),
  "do_basic_tokenize": (True,),
  "errors": ("replace",),
  "never_split": ([],),
  "padding_side": ("right",),
  "split_special_tokens": (False,),
  "truncation_side": ("right",),
}
_FLAGS = _OBEYED_BY_BERT | {"clean_up_tokenization_spaces"}


def check_types(config: Mapping[str, Any]) -> None:
  """Raises ConfigError for an obeyed key whose value is of a wrong type."""
  for key in config.keys() & {*SPECIAL_TOKENS}:
    value = config[key]
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) and value is not None:
      raise _refused(key, value, "a token, or an object with its content")
  for key in config.keys() & _FLAGS:
    if config[key] not in (None, True, False):
      raise _refused(key, config[key], "true, false or null")
  for key in config.keys() & {"tokenizer_class"}:
    if not isinstance(config[key], str | None):
      raise _refused(key, config[key], "the name of a class")
  count = config.get("extra_ids", 0)
  if type(count) is not int or not 0 <= count <= MOST_SENTINELS:
    needed = f"a number from 0 to {MOST_SENTINELS}"
    raise _refused("extra_ids", count, needed)


def warn_of_unread_keys(
  path: pathlib.Path, kind: str, config: Mapping[str, Any]
) -> None:
  """Logs one line that names what of a config is not done, if anything."""
  if found := unread_keys(kind, config):
    text = ", ".join(found)
    logger.warning(
      "%s: tokenizer_config.json has %s, which is not read", path, text
    )


def unread_keys(kind: str, config: Mapping[str, Any]) -> list[str]:
  """KEY=VALUE of what asks for something that is not done.

  Args:
    kind: class of the tokenizer.
  """
  known = _OBEYED | _HARMLESS
  if kind == "BertTokenizer":
    known |= _OBEYED_BY_BERT
  return [
    f"{key}={_shown(value)}"
    for key, value in sorted(config.items())
    if key not in known
    and not key.startswith("_")
    and value is not None
    and value not in _DEFAULTS.get(key, (False, [], {}, ""))
  ]


def _refused(key: str, value: Any, needed: str) -> ConfigError:
  return ConfigError(
    f"tokenizer_config.json has {key}={_shown(value)}; needed: {needed}"
  )


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}..."
