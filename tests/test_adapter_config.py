"""Every key of peft's adapter_config.json is obeyed, harmless or refused."""

import pytest

from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.lora.adapter_config import parse_config

USUAL = {
  "peft_type": "LORA",
  "r": 4,
  "lora_alpha": 8,
  "target_modules": ["to_q"],
  "lora_dropout": 0.1,
  "init_lora_weights": "gaussian",
  "fan_in_fan_out": False,
  "bias": "none",
  "base_model_name_or_path": "x",
  "layer_replication": None,
  "use_rslora": False,
}


def test_what_is_obeyed():
  config = parse_config(
    USUAL
    | {"rank_pattern": {"^down.to_k$": 2}, "alpha_pattern": {"to_v": 1}}
    | {"use_rslora": True, "use_dora": True, "modules_to_save": ["conv_in"]}
  )
  assert (config.rank_of("down.to_k"), config.rank_of("up.to_q")) == (2, 4)
  assert (config.alpha_of("down.to_v"), config.alpha_of("to_q")) == (1, 8)
  assert config.power == 0.5 and config.is_dora
  assert config.is_whole("unet.conv_in") and not config.is_whole("conv_out")
  plain = parse_config(USUAL)
  assert plain.power == 1 and not plain.is_dora and not plain.has_biases
  assert parse_config(USUAL | {"bias": "all"}).has_biases


@pytest.mark.parametrize(
  "key, value",
  [
    ("peft_type", "IA3"),
    ("fan_in_fan_out", True),
    ("init_lora_weights", "pissa"),
    ("init_lora_weights", "olora"),
    ("layer_replication", [[0, 4]]),
    ("use_dora", "yes"),
    ("bias", "some"),
    ("modules_to_save", "conv_in"),
    ("rank_pattern", {"(to_k|to_q": 2}),
    ("alpha_pattern", 5),
    ("of_a_later_version", 3),
  ],
)
def test_what_is_refused_is_named_in_one_line(key, value):
  with pytest.raises(WeightsError, match=key) as error:
    parse_config(USUAL | {key: value})
  assert "\n" not in str(error.value)


def test_ranks_and_alphas_of_wrong_types_name_the_module():
  with pytest.raises(WeightsError, match="r of to_q is 'four'"):
    parse_config(USUAL | {"r": "four"}).rank_of("to_q")
  with pytest.raises(WeightsError, match="alpha of to_q is nan"):
    parse_config(USUAL | {"lora_alpha": float("nan")}).alpha_of("to_q")
