"""No key of an encoder's or a tokenizer's config is passed over silently."""

import json
import logging

import pytest

from ldm_jax.data.text.tokenizer_keys import check_types, unread_keys
from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.encoder_keys import unread_encoder_keys
from ldm_jax.pretrained.networks import build, class_of

# What transformers 4 wrote into Stable Diffusion's folders.
CLIP = {
  "_name_or_path": "openai/clip-vit-large-patch14",
  "architectures": ["CLIPTextModel"],
  "attention_dropout": 0.0,
  "bos_token_id": 0,
  "dropout": 0.0,
  "eos_token_id": 2,
  "hidden_act": "quick_gelu",
  "hidden_size": 64,
  "initializer_factor": 1.0,
  "initializer_range": 0.02,
  "intermediate_size": 256,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 4,
  "num_hidden_layers": 2,
  "pad_token_id": 1,
  "projection_dim": 32,
  "torch_dtype": "float16",
  "transformers_version": "4.22.0.dev0",
  "vocab_size": 100,
}


def test_a_usual_config_says_nothing():
  assert unread_encoder_keys("text_encoder", "clip", CLIP) == ()
  generic = {"top_k": 50, "id2label": {"0": "LABEL_0"}, "pruned_heads": {}}
  generic |= {"num_beams": 1, "is_decoder": False, "return_dict": True}
  assert unread_encoder_keys("text_encoder", "clip", CLIP | generic) == ()
  assert build(CLIP | generic) == build(CLIP)


def test_unknown_keys_are_named_in_one_line():
  more = {"rope_theta": 1e4, "use_magic": True, "absent": None, "off": False}
  (line,) = unread_encoder_keys("text_encoder_2", "clip", CLIP | more)
  assert line == (
    "text_encoder_2/config.json has rope_theta=10000.0, use_magic=True, which "
    "is not read"
  )
  assert unread_encoder_keys("unet", "unet", more) == ()


def test_what_is_obeyed():
  """An end token of 2 is from before it was used; no dropout is done."""
  assert build(CLIP).end is None
  assert build(CLIP | {"eos_token_id": 99}).end == 99
  assert build(CLIP | {"attention_dropout": 0.1}) == build(CLIP)
  assert build(CLIP | {"hidden_act": "gelu"}).activation == "gelu"
  assert build(CLIP).projection is None
  projected = CLIP | {"architectures": ["CLIPTextModelWithProjection"]}
  assert build(projected).projection == 32


@pytest.mark.parametrize(
  "key, value, needed",
  [
    ("hidden_act", "relu", "quick_gelu"),
    ("hidden_act", 5, "a string"),
    ("eos_token_id", [2, 3], "one token"),
    ("layer_norm_eps", 1e-6, "1e-05"),
    ("model_type", "siglip_text_model", "clip_text_model"),
    ("pruned_heads", {"0": [1]}, "null"),
    ("quantization_config", {"load_in_8bit": True}, "null"),
    ("is_decoder", True, "False"),
    ("num_hidden_layers", 10**9, "at most 1000 layers"),
    ("hidden_size", "wide", "a whole number"),
    ("hidden_size", 10**400, "a whole number"),
    ("architectures", 5, "a list of classes"),
    ("num_attention_heads", 3, "3"),
  ],
)
def test_what_is_refused(key, value, needed):
  with pytest.raises(ConfigError) as error:
    build(CLIP | {key: value})
  assert key.split("_")[-1] in str(error.value) and needed in str(error.value)
  assert "\n" not in str(error.value)


# Stable Diffusion 1's.
TOKENIZER = {
  "add_prefix_space": False,
  "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>"},
  "do_lower_case": True,
  "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
  "errors": "replace",
  "model_max_length": 77,
  "name_or_path": "openai/clip-vit-large-patch14",
  "pad_token": "<|endoftext|>",
  "special_tokens_map_file": "./special_tokens_map.json",
  "tokenizer_class": "CLIPTokenizer",
  "unk_token": "<|endoftext|>",
}


def test_a_usual_tokenizers_config_says_nothing():
  check_types(TOKENIZER)
  assert unread_keys("CLIPTokenizer", TOKENIZER) == []


def test_what_a_tokenizer_does_not_do_is_named():
  asking = {"do_lower_case": False, "padding_side": "left", "magic": 3}
  found = unread_keys("CLIPTokenizer", TOKENIZER | asking)
  # transformers 5's CLIP lowers every letter, whatever do_lower_case says.
  assert found == ["magic=3", "padding_side='left'"] or found == [
    "do_lower_case=False", "magic=3", "padding_side='left'",
  ]  # fmt: skip
  assert "do_lower_case" not in str(unread_keys("BertTokenizer", asking))


@pytest.mark.parametrize(
  "key, value", [("bos_token", 5), ("do_lower_case", "no"), ("unk_token", {})]
)
def test_a_tokenizers_wrong_types_are_refused(key, value):
  with pytest.raises(ConfigError, match=key):
    check_types(TOKENIZER | {key: value})


def test_a_folder_names_the_keys_in_one_warning(tmp_path, caplog):
  from ldm_jax.data.text.tokenizer_files import read_tokenizer

  config = TOKENIZER | {"magic": 3, "split_special_tokens": True}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
  (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
  (tmp_path / "merges.txt").write_text("#version: 0.2\n")
  with caplog.at_level(logging.WARNING):
    read_tokenizer(tmp_path)
  (line,) = [m for m in caplog.messages if "is not read" in m]
  assert "magic=3, split_special_tokens=True" in line


def test_a_class_is_named():
  with pytest.raises(ConfigError, match="expected one of"):
    class_of({"architectures": ["UMT5EncoderModel"]})
