"""Every family's files: read, written, and read by diffusers again."""

import copy
import dataclasses
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_families
from reference_families import (
  PROMPTS,
  by_hand,
  generate_latents,
  normal,
)

import ldm_jax
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.pretrained import from_pretrained
from ldm_jax.pretrained import save_pretrained as saving
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.sampling import SamplingConfig
from ldm_jax.sampling.conditioning import ConditionInputs
from ldm_jax.weights.files import read_tensors

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("torch_models")

pytestmark = pytest.mark.slow
family, highest = reference_families.family, reference_families.highest

OLD_NAMES = {  # of the attention in autoencoders
  ".to_q.": ".query.",
  ".to_k.": ".key.",
  ".to_v.": ".value.",
  ".to_out.0.": ".proj_attn.",
}


def test_a_folder_is_restored_bit_for_bit(family, tmp_path):
  name, pipe, _, loaded = family
  back = tmp_path / "back"
  if name in ("upscaler", "depth"):
    with pytest.raises(ConfigError, match=r"no text pipeline|noises the image"):
      saving.save_pretrained(loaded.model, loaded.params, str(back))
    assert not back.exists()
    return
  saving.save_pretrained(
    loaded.model,
    loaded.params,
    str(back),
    tokenizer=loaded.tokenizer,
    image_size=32,
  )
  again = type(pipe).from_pretrained(back)
  parts = ("unet", "vae", "vqvae", "bert", "text_encoder", "text_encoder_2")
  for part in parts:
    module = getattr(pipe, part, None)
    if module is None:
      continue
    before, after = module.state_dict(), getattr(again, part).state_dict()
    assert before.keys() == after.keys()
    for key in before:
      if key.startswith("to_logits."):
        continue  # LDM's head that predicts words, which nothing reads
      assert torch.equal(before[key], after[key]), (part, key)
  for key in ("force_zeros_for_empty_prompt", "requires_aesthetics_score"):
    assert again.config.get(key) == pipe.config.get(key)
  assert again.scheduler.config.prediction_type == (
    pipe.scheduler.config.prediction_type
  )
  if name != "ldm":
    tokenizer = again.tokenizer or again.tokenizer_2
    ids = (pipe.tokenizer or pipe.tokenizer_2)(PROMPTS).input_ids
    assert tokenizer(PROMPTS).input_ids == ids


def test_a_single_file_is_restored_bit_for_bit(family, tmp_path):
  _, _, folder, loaded = family
  path = str(tmp_path / "model.safetensors")
  saving.save_single_file(loaded.model, loaded.params, path)
  given = from_pretrained.read_configs(str(folder))
  model, params = ldm_jax.from_single_file(path, config=given)
  assert model.prediction == loaded.model.prediction
  jax.tree.map(np.testing.assert_array_equal, params.unet, loaded.params.unet)
  jax.tree.map(
    np.testing.assert_array_equal,
    params.first_stage,
    loaded.params.first_stage,
  )
  before, after = loaded.params.conditioners, params.conditioners
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert model.unet == loaded.model.unet


def test_other_files_of_torch_are_the_same_model(family, tmp_path):
  """.bin by torch.save, attention with its former names, and an fp16
  variant."""
  name, pipe, folder, loaded = family
  if name != "sd1":
    pytest.skip("files are files in every family")
  shutil.copytree(folder, tmp_path / "old")
  shutil.copytree(folder, tmp_path / "half")
  for part in ("unet", "vae", "text_encoder"):
    is_text = part == "text_encoder"
    state = dict(getattr(pipe, part).state_dict())
    if part == "vae":
      for now, once in OLD_NAMES.items():
        state = {key.replace(now, once): x for key, x in state.items()}
      assert any(".proj_attn." in key for key in state)
    (found,) = (tmp_path / "old" / part).glob("*.safetensors")
    found.unlink()
    stem = "pytorch_model" if is_text else "diffusion_pytorch_model"
    torch.save(state, tmp_path / "old" / part / f"{stem}.bin")
    (found,) = (tmp_path / "half" / part).glob("*.safetensors")
    found.unlink()
    half = copy.deepcopy(getattr(pipe, part)).half()
    half.save_pretrained(tmp_path / "half" / part, variant="fp16")
  same = open_model(str(tmp_path / "old"))
  jax.tree.map(np.testing.assert_array_equal, same.params, loaded.params)
  halves = open_model(str(tmp_path / "half"), LoadOptions(variant="fp16"))
  jax.tree.map(
    lambda ours, whole: np.testing.assert_array_equal(
      ours, np.float32(np.float16(whole))
    ),
    halves.params.unet,
    loaded.params.unet,
  )


def test_diffusers_reads_our_single_file(family, tmp_path):
  name, pipe, folder, loaded = family
  if name not in ("sd1", "sdxl"):
    pytest.skip(
      "diffusers' reader drops block 23 of SD 2's text encoder by number"
    )
  path = str(tmp_path / "model.safetensors")
  saving.save_single_file(loaded.model, loaded.params, path)
  unet = type(pipe.unet).from_single_file(
    path, config=str(folder), subfolder="unet"
  )
  for key, value in pipe.unet.state_dict().items():
    assert torch.equal(unet.state_dict()[key], value), key


def test_class_conditional_ldm_from_a_single_file(tmp_path):
  torch.manual_seed(3)
  unet = torch_models.unet(in_channels=3, out_channels=3)
  table = torch.nn.Embedding(11, 32)  # ten classes, and none of them
  unet.save_pretrained(tmp_path / "unet")
  torch_models.ldm(tmp_path).vqvae.save_pretrained(tmp_path / "vae")
  (unet_of_ours, unet_params), (vq, vq_params) = (
    ldm_jax.from_pretrained(str(tmp_path), subfolder=name)
    for name in ("unet", "vae")
  )
  table_params = {
    "table": {"embedding": jnp.asarray(table.weight.detach().numpy())}
  }
  path = str(tmp_path / "cin.safetensors")
  saving.save_single_file(
    LatentDiffusion(vq, unet_of_ours, (ClassEmbedder(10, 32),)),
    Parameters(
      vq_params,
      jnp.float32(1),
      {"label": {"params": table_params}},
      unet_params,
    ),
    path,
  )
  assert read_tensors(path)["cond_stage_model.embedding.weight"].shape == (
    (11, 32)
  )
  torch_models.scheduler().save_pretrained(tmp_path / "scheduler")
  loaded = open_model(path, LoadOptions(config=str(tmp_path)))
  noise = np.asarray(normal(2, 8, 8, 3))
  settings = SamplingConfig(
    16,
    16,
    dataclasses.replace(loaded.sampler_config, steps=10),
    ClassifierFreeGuidance(4.0),
  )
  request = ConditionInputs([], [None] * 2, 7, 16, 16)
  found = generate_latents(loaded, settings, request, noise)
  sides = [
    {"encoder_hidden_states": table(torch.full((2, 1), label))}
    for label in (7, 10)
  ]
  pipe = types.SimpleNamespace(unet=unet, scheduler=torch_models.scheduler())
  expected = by_hand(pipe, noise, sides)
  np.testing.assert_allclose(
    found, expected, atol=2e-3 * np.abs(expected).max()
  )
