"""T5's encoder: its identities, its files, its tokenizer, its conditioner."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import t5_files
from networks import random_variables

import ldm_jax
from ldm_jax.data.text import tokenizers
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.conditioners.embedded_text import (
  embed,
  embedded_name,
  embedded_text,
  null_variables,
)
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder, relative_buckets
from ldm_jax.pretrained.components import (
  Components,
  ForeignNetwork,
  open_file,
)
from ldm_jax.pretrained.networks import build
from ldm_jax.pretrained.single_network.add_text_encoders import (
  add_text_encoders,
)
from ldm_jax.pretrained.text.t5_config import t5, t5_config
from ldm_jax.pretrained.text.transformers_names import transformers_tensors
from ldm_jax.weights.naming.convert import revert, shapes
from ldm_jax.weights.naming.parameter_names import name_table
from ldm_jax.weights.safetensors_files import (
  write_safetensors,
)

ENCODER = t5(t5_files.CONFIG)
TOKENS = jnp.asarray([[5, 9, 1, 0, 0, 0, 0], [7, 6, 5, 4, 11, 1, 0]])


@pytest.fixture(scope="module")
def variables():
  return random_variables(ENCODER, TOKENS[:1, :1], seed=0)


@pytest.fixture(scope="module")
def tensors(variables):
  table = name_table("t5", "compvis", shapes(variables["params"]))
  return revert(table, variables["params"])


def test_published_sizes_have_their_numbers_of_parameters():
  counts = {
    T5Encoder(): 4_762_310_656,  # XXL; SD3's and FLUX's
    T5Encoder(32128, 768, 12, 12, 64, 2048): 109_628_544,  # base
  }
  for encoder, count in counts.items():
    found = jax.eval_shape(encoder.init, jax.random.key(0), TOKENS)
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == count


def test_a_distance_is_in_one_class_of_its_direction():
  found = np.asarray(relative_buckets(200, 32, 128))
  assert found[0, :8].tolist() == [0, *range(17, 24)]
  assert found[:8, 0].tolist() == list(range(8))
  assert found[199, 0] == 15 and found[0, 199] == 31
  assert (np.diff(found[:, 0]) >= 0).all()


def test_a_scan_and_remat_change_nothing(variables):
  def loss(params, encoder):
    return jnp.square(encoder.apply({"params": params}, TOKENS)).mean()

  params = variables["params"]
  value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  one = value_and_grad(params, ENCODER)
  scanned = ENCODER.clone(is_scanned=True, remat="full")
  other = value_and_grad(params, scanned)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert np.abs(a).max() > 0


def test_masked_padding_is_not_attended_to(variables):
  apply = jax.jit(ENCODER.apply)
  mask = TOKENS != 0
  other = jnp.where(mask, TOKENS, 3)
  ours, theirs = (apply(variables, ids, mask) for ids in (TOKENS, other))
  np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-6)
  assert np.abs(apply(variables, other) - theirs)[mask].max() > 1e-3


def test_states_beyond_float16_are_computed(variables):
  """Of the feed-forward's product and last matrix, as XXL has them."""
  params = jax.tree.map(lambda x: x, variables["params"])
  for name in ("gate", "up"):
    kernel = params["block_0"][name]["kernel"]
    params["block_0"][name]["kernel"] = kernel * 300.0
  half = jax.jit(ENCODER.clone(dtype="float16").apply)
  out = half({"params": params}, TOKENS)
  exact = jax.jit(ENCODER.apply)({"params": params}, TOKENS)
  np.testing.assert_allclose(out, exact, atol=0.05 * np.abs(exact).max())


def test_a_folder_has_the_parameters_and_config_it_was_written_of(
  variables, tmp_path
):
  folder = tmp_path / "t5"
  ldm_jax.save_pretrained(ENCODER, variables, folder, max_shard_bytes=20_000)
  assert (folder / "model.safetensors.index.json").is_file()
  again, params = ldm_jax.from_pretrained(str(folder))
  assert again == ENCODER
  jax.tree.map(np.testing.assert_array_equal, params, variables)
  assert t5(t5_config(ENCODER)) == ENCODER


@pytest.mark.parametrize("table", ["shared", "encoder.embed_tokens", "both"])
def test_a_file_shows_its_size(table, variables, tensors, tmp_path):
  own = dict(tensors)
  rows = own.pop("shared.weight")
  names = ["shared", "encoder.embed_tokens"] if table == "both" else [table]
  own |= {f"{name}.weight": rows for name in names}
  own["decoder.block.0.layer.0.layer_norm.weight"] = np.ones(3, np.float32)
  path = tmp_path / "t5xxl.safetensors"
  write_safetensors(path, own)
  found, params = ldm_jax.from_single_file(str(path))
  # No shape shows at which distance the last class begins.
  assert found == ENCODER.clone(distance=128)
  jax.tree.map(np.testing.assert_array_equal, params, variables)
  config = {"text_encoder": {"relative_attention_max_distance": 20}}
  assert ldm_jax.from_single_file(str(path), config=config)[0] == ENCODER


def test_a_file_of_8_bit_floats_is_read(variables, tensors, tmp_path):
  cast = {n: x.astype(ml_dtypes.float8_e4m3fn) for n, x in tensors.items()}
  path = tmp_path / "t5xxl_fp8_e4m3fn.safetensors"
  write_safetensors(path, cast)
  _, params = ldm_jax.from_single_file(str(path))
  exact = jax.tree.map(
    lambda x: x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32),
    jax.tree.map(np.asarray, variables),
  )
  jax.tree.map(np.testing.assert_array_equal, params, exact)


def test_a_file_of_scaled_8_bit_floats_is_multiplied(
  variables, tensors, tmp_path
):
  scale = np.float32(0.25)
  own = {"scaled_fp8": np.zeros(2, ml_dtypes.float8_e4m3fn)}
  for name, tensor in tensors.items():
    is_matrix = "SelfAttention.q" in name or "DenseReluDense" in name
    if not is_matrix:
      own[name] = tensor.astype(np.float16)
      continue
    own[name] = (tensor / scale).astype(ml_dtypes.float8_e4m3fn)
    own[f"{name.removesuffix('weight')}scale_weight"] = scale[None]
  path = tmp_path / "t5xxl_fp8_e4m3fn_scaled.safetensors"
  write_safetensors(path, own)
  _, params = ldm_jax.from_single_file(str(path))
  for ours, exact in zip(
    jax.tree.leaves(params), jax.tree.leaves(variables), strict=True
  ):
    bound = 2.0**-4 * np.abs(exact) + 2.0**-10 * scale
    assert (np.abs(ours - exact) <= bound).all()


def test_what_is_no_t5_of_version_1_1_is_refused(tensors, tmp_path):
  config = t5_files.CONFIG | {"feed_forward_proj": "relu"}
  with pytest.raises(ConfigError, match="'gated-gelu', of T5 version"):
    t5(config)
  config = t5_files.CONFIG | {"relative_attention_num_buckets": 6}
  with pytest.raises(ConfigError, match="a multiple of 4"):
    t5(config)
  first = {n.replace("wi_0", "wi"): x for n, x in tensors.items()}
  first = {n: x for n, x in first.items() if "wi_1" not in n}
  write_safetensors(tmp_path / "first.safetensors", first)
  with pytest.raises(WeightsError, match="whose feed-forward has a gate"):
    open_file(str(tmp_path / "first.safetensors"))
  other = tensors["shared.weight"] + 1
  both = tensors | {"encoder.embed_tokens.weight": other}
  write_safetensors(tmp_path / "both.safetensors", both)
  with pytest.raises(WeightsError, match="differ; they are one table"):
    open_file(str(tmp_path / "both.safetensors"))


def test_dropped_prompts_are_the_empty_one(variables):
  embedder = T5Embedder(ENCODER, 7)
  params = {"params": {"encoder": variables["params"]}}
  empty = jnp.asarray([[1, 0, 0, 0, 0, 0, 0]])
  drop = jnp.asarray([True, False])
  found = embedder.apply(params, TOKENS, drop)
  kept = embedder.apply(params, TOKENS, jnp.zeros(2, bool))
  null = ENCODER.apply(variables, empty)
  np.testing.assert_allclose(found.context[:1], null, atol=1e-6)
  np.testing.assert_array_equal(found.context[1:], kept.context[1:])
  assert found.vector is None
  with pytest.raises(ValueError, match="5 tokens for T5; give 7"):
    embedder.apply(params, TOKENS[:, :5], drop)


def test_outputs_take_the_place_of_ids(variables):
  """With the unconditional output where a prompt is dropped."""
  embedder = T5Embedder(ENCODER, 7, zero_vector=5)
  own = {"params": {"encoder": variables["params"]}}
  drop = jnp.asarray([True, False])
  rows = embed(embedder, own, TOKENS, jnp.zeros(2, bool))
  assert set(rows) == {"context", "vector"}
  null = null_variables(embedder, own, TOKENS[:1])
  assert jax.tree.map(jnp.shape, null) == {
    "null": {"context": (7, 32), "vector": (5,)}
  }
  batch = {embedded_name("t5_tokens", k): x for k, x in rows.items()}
  text = embedded_text(batch, "t5_tokens")
  found = embedder.apply(null, text, drop)
  wanted = embedder.apply(own, TOKENS, drop)
  for part in rows:
    np.testing.assert_allclose(
      getattr(found, part), getattr(wanted, part), atol=1e-5
    )
  assert embedded_text({"t5_tokens": TOKENS}, "t5_tokens") is None
  # New variables are those of the encoder, whatever the input.
  fresh = jax.eval_shape(embedder.init, jax.random.key(0), text, drop)
  assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, own)


def test_zeros_stand_for_what_is_missing(variables):
  embedder = T5Embedder(ENCODER, 7, zero_tokens=3, zero_vector=5)
  params = {"params": {"encoder": variables["params"]}}
  found = embedder.apply(params, TOKENS, jnp.zeros(2, bool))
  np.testing.assert_array_equal(found.context[:, :3], 0)
  exact = ENCODER.apply(variables, TOKENS)
  np.testing.assert_allclose(found.context[:, 3:], exact, atol=1e-6)
  np.testing.assert_array_equal(found.vector, np.zeros((2, 5)))


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path):
  folder = t5_files.tokenizer_folder(tmp_path / "t5")
  tokenizer = tokenizers.load(folder, 8)
  ids = {text: i for i, (text, _) in enumerate(t5_files.PIECES)}
  names = ["▁a", "▁red", "▁fox", "</s>", "<pad>", "<pad>", "<pad>", "<pad>"]
  assert tokenizer.encode(["a red  fox"])[0].tolist() == [
    ids[name] for name in names
  ]
  assert tokenizer.empty.tolist() == [1] + [0] * 7
  assert tokenizer.size == len(ids) + 100
  assert tokenizer.backend.get_vocab()["<extra_id_99>"] == len(ids)
  assert tokenizer.decode(tokenizer.encode(["paintings of cats"])[0]) == (
    "paintings of cats"
  )
  assert tokenizer.left_out("a red fox in the snow of the cat") == "the cat"
  assert tokenizer.left_out("a red fox") == ""
  tokenizer.save(tmp_path / "saved")
  again = tokenizers.load(tmp_path / "saved", 8)
  text = ["A painting of the Cat, in snow"]
  np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize(
  "content",
  [b"\x0a\x05ab", b"\xff" * 12, b"\x0b", t5_files.sentencepiece_model()[:-3]],
)
def test_a_malformed_sentencepiece_model_is_refused(content, tmp_path):
  (tmp_path / "spiece.model").write_bytes(content)
  with pytest.raises(ConfigError, match="is no sentencepiece model"):
    tokenizers.load(tmp_path, 8)


def test_a_config_of_the_tokenizer_is_checked(tmp_path):
  folder = t5_files.tokenizer_folder(tmp_path)
  config = {"tokenizer_class": "T5TokenizerFast", "extra_ids": -1}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  with pytest.raises(ConfigError, match="extra_ids=-1"):
    tokenizers.load(folder, 8)


@pytest.mark.parametrize(
  ("width", "activation"), [(64, "quick_gelu"), (1024, "gelu")]
)
def test_clip_is_read_of_a_file_of_its_own(width, activation, tmp_path):
  """clip_l and clip_g, under transformers' names."""
  clip = ClipText(9, width, 1, width // 64, 5, 8, activation, projection=6)
  variables = random_variables(clip, TOKENS[:1, :1] * 0, seed=2)
  table = name_table("clip", "compvis", shapes(variables["params"]))
  own = transformers_tensors("clip", revert(table, variables["params"]))
  own["text_model.embeddings.position_ids"] = np.arange(5)[None]
  own["logit_scale"] = np.ones((), np.float32)
  write_safetensors(tmp_path / "clip.safetensors", own)
  found, params = ldm_jax.from_single_file(str(tmp_path / "clip.safetensors"))
  assert found == clip
  jax.tree.map(np.testing.assert_array_equal, params, variables)


def test_flux_takes_a_pooled_text_as_it_is(tensors, tmp_path):
  """Whatever matrix a file of CLIP holds for others."""
  clip = ClipText(9, 64, 1, 1, 5, 8, projection=6)
  variables = random_variables(clip, TOKENS[:1, :1] * 0, seed=2)
  table = name_table("clip", "compvis", shapes(variables["params"]))
  own = transformers_tensors("clip", revert(table, variables["params"]))
  paths = [str(tmp_path / f"{name}.safetensors") for name in ("t5", "clip_l")]
  for path, each in zip(paths, (tensors, own), strict=True):
    write_safetensors(path, each)
  flux = ForeignNetwork({}, {}, "flux", "compvis")
  found = add_text_encoders(Components({"unet": flux}), paths).networks
  assert list(found) == ["unet", "text_encoder", "text_encoder_2"]
  assert build(found["text_encoder"].config) == clip.clone(projection=None)
  assert found["text_encoder_2"].kind == "t5"
  with pytest.raises(ConfigError, match="a second text_encoder_2"):
    add_text_encoders(Components({"unet": flux}), [paths[0]] * 2)
