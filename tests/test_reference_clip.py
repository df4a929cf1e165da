"""Comparisons with transformers' CLIP, random and small."""

import json

import clip_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_jax.cli import evaluate
from ldm_jax.evaluation.metrics.distribution_distances import cmmd
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.clip_vision import MEAN, STD, ClipVision
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.metric_networks.clip_scores import (
  clip_scores,
  open_clip,
)
from ldm_jax.pretrained.networks import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow

VOCABULARY, LENGTH, END = 64, 11, 57
OLD_END = 2  # in configs that pool at the largest id


def text_encoders(width, *, end, activation="quick_gelu", projection=None):
  """transformers' text encoder in float64, all random, and the one here."""
  config = transformers.CLIPTextConfig(
    vocab_size=VOCABULARY,
    hidden_size=width,
    intermediate_size=3 * width,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=LENGTH,
    hidden_act=activation,
    eos_token_id=end,
    projection_dim=projection or 1,
    attn_implementation="sdpa",  # "eager" softmaxes in float32 even here
  )
  kind = transformers.CLIPTextModel
  if projection:
    kind = transformers.CLIPTextModelWithProjection
  theirs = kind(config).eval().double()
  for name, parameter in theirs.named_parameters():
    is_scale = "norm" in name and name.endswith("weight")
    # From float32, so that both formats hold the same model.
    random = torch.randn(parameter.shape) * 0.3 + float(is_scale)
    parameter.data = random.double()
  ours = ClipText(
    VOCABULARY,
    width,
    3,
    4,
    LENGTH,
    hidden=3 * width,
    activation=activation,
    projection=projection,
    end=None if end == OLD_END else end,
  )
  return theirs, ours


def converted(theirs):
  """Its tensors as Flax parameters."""
  tensors = {
    name.removeprefix("text_model."): tensor.numpy().astype(np.float32)
    for name, tensor in theirs.state_dict().items()
  }

  def pair(name, weight):
    return {
      weight: tensors[f"{name}.weight"].T,
      "bias": tensors[f"{name}.bias"],
    }

  dense = lambda name: pair(name, "kernel")
  norm = lambda name: pair(name, "scale")
  params = {
    "tokens": {"embedding": tensors["embeddings.token_embedding.weight"]},
    "positions": tensors["embeddings.position_embedding.weight"],
    "norm": norm("final_layer_norm"),
  }
  if "text_projection.weight" in tensors:
    params["projection"] = {"kernel": tensors["text_projection.weight"].T}
  for i in range(3):
    layer = f"encoder.layers.{i}"
    params[f"block_{i}"] = {
      "norm1": norm(f"{layer}.layer_norm1"),
      "norm2": norm(f"{layer}.layer_norm2"),
      "up": dense(f"{layer}.mlp.fc1"),
      "down": dense(f"{layer}.mlp.fc2"),
      "attention": {
        ours: dense(f"{layer}.self_attn.{ours}_proj")
        for ours in ("q", "k", "v")
      }
      | {"out": dense(f"{layer}.self_attn.out_proj")},
    }
  return {"params": jax.tree.map(jnp.asarray, params)}


def outputs(theirs, tokens):
  """(states before the last norm, by depth; normed ones; pooled), in numpy."""
  with torch.no_grad():
    out = theirs(torch.from_numpy(tokens), output_hidden_states=True)
    norm = getattr(theirs, "text_model", theirs).final_layer_norm
    states = out.hidden_states
    normed = [norm(state) for state in states]
    pooled = out["text_embeds" if "text_embeds" in out else "pooler_output"]
  torch.testing.assert_close(normed[-1], out.last_hidden_state)
  numpy = lambda tensors: [tensor.numpy() for tensor in tensors]
  return numpy(states), numpy(normed), pooled.numpy()


def assert_as_close(ours, float32, float64):
  """The error is at most 20 times torch's own, or 1e-5 of the deviation."""
  error = np.abs(np.asarray(ours, np.float64) - float64).max()
  theirs = np.abs(float32 - float64).max()
  assert error <= max(20 * theirs, 1e-5 * float64.std())


def prompts(seed):
  """Several ends in each, and ids above the end in most."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, VOCABULARY, (6, LENGTH))
  tokens[:, [5, 9]] = END
  tokens[0] = np.minimum(tokens[0], END)  # pooled equally by both rules
  return tokens


@pytest.mark.parametrize("projection", [None, 24])
@pytest.mark.parametrize("end", [END, OLD_END])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_states_and_vectors_equal_transformers(activation, end, projection):
  torch.manual_seed(0)
  theirs, ours = text_encoders(
    32, end=end, activation=activation, projection=projection
  )
  params, tokens = converted(theirs), prompts(0)
  exact = outputs(theirs, tokens)
  float32 = outputs(theirs.float(), tokens)
  with jax.default_matmul_precision("highest"):
    for skip in range(3):
      for is_normed in (False, True):
        found = ours.apply(params, jnp.asarray(tokens), skip, is_normed)
        depth = 3 - skip
        assert_as_close(
          found.context, float32[is_normed][depth], exact[is_normed][depth]
        )
        assert_as_close(found.pooled, float32[2], exact[2])


def test_two_text_encoders_give_the_condition_of_sdxl():
  """hidden_states[-2] of both concatenated, text_embeds of the second."""
  torch.manual_seed(1)
  pairs = [
    text_encoders(16, end=OLD_END),
    text_encoders(32, end=OLD_END, activation="gelu", projection=32),
  ]
  embedder = ClipEmbedder(
    tuple(ours for _, ours in pairs),
    skips=(1, 1),
    paddings=(END, 0),
    is_normed=False,
    is_pooled=True,
    null="zeros",
  )
  params = {
    f"encoders_{i}": converted(theirs)["params"]
    for i, (theirs, _) in enumerate(pairs)
  }
  tokens = np.stack([prompts(2), prompts(3)], axis=1)

  def expected(precise):
    parts = [
      outputs(theirs.to(precise), tokens[:, i])
      for i, (theirs, _) in enumerate(pairs)
    ]
    return np.concatenate([part[0][-2] for part in parts], -1), parts[1][2]

  exact, float32 = expected(torch.float64), expected(torch.float32)
  with jax.default_matmul_precision("highest"):
    found = embedder.apply(
      {"params": params}, jnp.asarray(tokens), jnp.zeros(6, bool)
    )
  assert_as_close(found.context, float32[0], exact[0])
  assert_as_close(found.vector, float32[1], exact[1])


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPModel"])
def test_embeddings_of_images_equal_transformers(tmp_path, kind):
  """Through a folder in the published format."""
  torch.manual_seed(1)
  vision = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "projection_dim": 24,
  }
  if kind == "CLIPModel":
    text = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 64}
    text |= {"num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPConfig(
      text_config=text, vision_config=vision, projection_dim=24
    )
  else:
    config = transformers.CLIPVisionConfig(**vision)
  theirs = getattr(transformers, kind)(config).eval()
  for parameter in theirs.parameters():
    parameter.data += torch.randn(parameter.shape) * 0.2
  theirs.save_pretrained(tmp_path)
  module, variables = load(open_network(str(tmp_path)))
  pixels = np.random.default_rng(0).uniform(-1, 1, (3, 12, 12, 3))
  pixels = pixels.astype(np.float32)
  normalized = ((pixels + 1) / 2 - np.array(MEAN)) / np.array(STD)
  normalized = torch.tensor(
    normalized.transpose(0, 3, 1, 2), dtype=torch.float32
  )
  with torch.no_grad():
    if kind == "CLIPModel":
      embeddings = theirs.get_image_features(pixel_values=normalized)
      embeddings = getattr(embeddings, "pooler_output", embeddings)
    else:
      embeddings = theirs(pixel_values=normalized).image_embeds
  expected = embeddings.numpy()
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  found = module.apply(variables, jnp.asarray(pixels))
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_published_image_encoder_has_its_exact_size():
  """ViT-L/14: transformers' own count of the same config."""
  config = transformers.CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=14,
    projection_dim=768,
  )
  with torch.device("meta"):
    theirs = transformers.CLIPVisionModelWithProjection(config)
  shapes = jax.eval_shape(
    ClipVision().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == sum(p.numel() for p in theirs.parameters())


@pytest.fixture
def whole(tmp_path):
  """Both encoders of a small CLIP in a folder, and transformers' model."""
  torch.manual_seed(2)
  tokenizer = clip_tokenizer.tokenizer(tmp_path)
  tokenizer.save_pretrained(tmp_path)
  vision = {"image_size": 12, "patch_size": 4}
  text = {
    "vocab_size": len(tokenizer),
    "eos_token_id": tokenizer.eos_token_id,
    "max_position_embeddings": LENGTH,
  }
  for encoder, width in ((vision, 32), (text, 16)):
    encoder |= {"hidden_size": width, "intermediate_size": 2 * width}
    encoder |= {"num_hidden_layers": 2, "num_attention_heads": 4}
  config = transformers.CLIPConfig(
    text_config=text, vision_config=vision, projection_dim=24
  )
  theirs = transformers.CLIPModel(config).eval()
  for parameter in theirs.parameters():
    parameter.data += torch.randn(parameter.shape) * 0.2
  theirs.save_pretrained(tmp_path)
  return str(tmp_path), theirs, tokenizer


def test_scores_of_texts_and_images_equal_transformers(whole):
  folder, theirs, tokenizer = whole
  ours = open_clip(folder)
  captions = ["a red fox", "fox", "a a a a a a a a a a a a a a a a"]
  images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)
  image_rows = ours.image_embeddings(ours.variables, jnp.asarray(images))
  text_rows = ours.text_embeddings(
    ours.variables, jnp.asarray(ours.tokenizer.encode(captions))
  )
  found = clip_scores(image_rows, text_rows)
  ids = tokenizer(
    captions,
    padding="max_length",
    max_length=LENGTH,
    truncation=True,
    return_tensors="pt",
  )
  normalized = (images / 255 - np.array(MEAN)) / np.array(STD)
  normalized = torch.tensor(
    normalized.transpose(0, 3, 1, 2), dtype=torch.float32
  )
  with torch.no_grad():
    output = theirs(pixel_values=normalized, **ids)
  cosines = (output.image_embeds * output.text_embeds).sum(-1).numpy()
  np.testing.assert_allclose(found, 100 * np.maximum(cosines, 0), atol=1e-4)
  assert np.ptp(cosines) > 0.01


def test_evaluate_scores_images_with_their_own_captions(
  whole, tmp_path, capsys
):
  clip = open_clip(whole[0])
  rng = np.random.default_rng(3)
  images = rng.integers(0, 256, (2, 3, 12, 12, 3), np.uint8)
  captions = ["a red fox", "fox", "a a a"]
  for name, folder in zip(("generated", "real"), images, strict=True):
    (tmp_path / name).mkdir()
    for i, image in enumerate(folder):
      Image.fromarray(image).save(tmp_path / name / f"{i}.png")
      if name == "real":
        (tmp_path / name / f"{i}.txt").write_text(captions[i])
  generated, real = (str(tmp_path / name) for name in ("generated", "real"))

  def evaluated(*flags):
    assert evaluate.main([*flags, f"--clip={whole[0]}"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])

  rows = [
    np.asarray(clip.image_embeddings(clip.variables, jnp.asarray(x)))
    for x in images
  ]
  text_rows = clip.text_embeddings(
    clip.variables, jnp.asarray(clip.tokenizer.encode(captions))
  )
  found = evaluated(generated, real, "--paired")
  scores = [clip_scores(jnp.asarray(each), text_rows).mean() for each in rows]
  assert abs(scores[0] - scores[1]) > 0.1
  np.testing.assert_allclose(found["clip_score"], scores[0], rtol=1e-5)
  np.testing.assert_allclose(found["cmmd"], cmmd(*rows), rtol=1e-4)
  assert found["clip"] == tmp_path.name
  np.testing.assert_allclose(
    evaluated(real, generated)["clip_score"], scores[1], rtol=1e-5
  )
  # Captions are of the images of one folder, not of unpaired others.
  assert evaluated(generated, real)["clip_score"] == "unavailable"
