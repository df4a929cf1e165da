"""The keys of an encoder's config.json that are neither obeyed nor refused.

transformers writes the defaults of all models into the config of each. Those
below do not change what an encoder computes; others are named.
"""

from ldm_jax.pretrained.configs.defaults import BERT, CLIP, VISION
from ldm_jax.pretrained.configs.strict_config import Config
from ldm_jax.pretrained.text.t5_config import T5

_SCHEMAS = {"clip": CLIP, "clip_vision": VISION, "text": BERT, "t5": T5}
_HARMLESS = frozenset({
  # Of training, initialisation and the form of results.
  *("attention_dropout", "dropout", "activation_dropout", "classifier_dropout"),
  *("encoder_layerdrop", "initializer_factor", "initializer_range", "init_std"),
  *("output_attentions", "output_hidden_states", "return_dict", "use_cache"),
  *("use_return_dict", "logit_scale_init_value", "chunk_size_feed_forward"),
  *("dtype", "torch_dtype", "torchscript", "use_bfloat16", "tf_legacy_loss"),
  # Special tokens: the tokenizer's are used.
  *("bos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
  *("tokenizer_class", "prefix", "task_specific_params", "finetuning_task"),
  # Of heads and decoders, which encoders do not have.
  *("id2label", "label2id", "num_labels", "problem_type"),
  *("num_decoder_layers", "n_positions", "output_past", "eos_token_id"),
  "dropout_rate",
  *("tie_word_embeddings", "tie_encoder_decoder", "scale_embedding"),
  "scale_decoder_outputs",
  *("model_type", "_class_name"),
  *("transformers_version", "architectures", "projection_dim"),
  # Of generating text.
  *("bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample"),
  *("early_stopping", "encoder_no_repeat_ngram_size"),
  *("exponential_decay_length_penalty", "forced_bos_token_id"),
  "length_penalty",
  *("forced_eos_token_id", "max_length", "min_length", "no_repeat_ngram_size"),
  *("num_beam_groups", "num_beams", "num_return_sequences", "output_scores"),
  *("remove_invalid_values", "repetition_penalty", "return_dict_in_generate"),
  *("suppress_tokens", "temperature", "top_k", "top_p", "typical_p"),
})  # fmt: skip


def unread_encoder_keys(
  name: str, kind: str, config: Config
) -> tuple[str, ...]:
  """A line that names the keys that ask for something that is not done.

  Args:
    name: of the subfolder.
    kind: of the network; there is no line for others than encoders.
  """
  schema = _SCHEMAS.get(kind)
  if schema is None or "vision_config" in config:  # of two encoders
    return ()
  known = _HARMLESS | schema.defaults.keys() | schema.demands.keys()
  found = [
    f"{key}={_shown(value)}"
    for key, value in config.items()
    if key not in known and not key.startswith("_") and value
  ]
  if not found:
    return ()
  return (f"{name}/config.json has {', '.join(found)}, which is not read",)


def _shown(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}..."
