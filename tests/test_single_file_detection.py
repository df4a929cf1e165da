"""The family of a single file is detected from its tensors' shapes."""

import ml_dtypes  # noqa: F401 (registers bfloat16)
import numpy as np
import pytest
from networks import class_shapes
from published_networks import transformer
from single_files import (
  CHURCHES,
  CLIP,
  CLIP_PART,
  FACES,
  FAMILIES,
  FIRST,
  H_PART,
  LDM,
  LDM_CLASSES,
  LDM_TEXT,
  OLD,
  OPEN,
  SD1,
  SD2,
  SDXL,
  SECOND,
  SIZES,
  TINY_CLIP,
  TINY_G,
  TINY_H,
  TINY_VAE,
  TINY_VQ,
  UNET,
  VAE,
  XL_PARTS,
  open_clip_file,
  text_file,
  tiny,
  under,
  unet_file,
  vae_file,
)

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import WeightsError
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder
from ldm_jax.pretrained.configs.scheduler_config import schedule
from ldm_jax.pretrained.configs.text_encoder_config import classes, clip, text
from ldm_jax.pretrained.configs.unet_reader import inputs, unet
from ldm_jax.pretrained.single_file.detect import detect


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_detected_as_the_modules_it_was_made_from(family):
  module, fed, others, vae, scale, noise = FAMILIES[family]
  shapes = unet_file(module, fed) | vae_file(vae) | others
  found = detect(shapes, read=lambda name: np.float32(0.7))
  assert found.family == family
  assert unet(found.unet.config) == module
  sizes = inputs(found.unet.config)
  assert (sizes.channels, sizes.context, sizes.vector) == (*fed, None, None)[:3]
  assert found.unet.prefix == UNET
  made, found_scale = autoencoder(found.vae.config)
  assert (made, found.vae.prefix) == (vae, VAE)
  assert found_scale == pytest.approx(scale)
  prediction = "v" if family in ("sd2-v", "x4-upscaler") else "eps"
  assert schedule(found.scheduler) == (noise, prediction)


def test_text_encoders_are_found_by_their_prefixes():
  shapes = unet_file(SDXL, SIZES) | XL_PARTS
  first, second = detect(shapes).text_encoders
  assert clip(first.config) == TINY_CLIP
  assert clip(second.config) == TINY_G
  assert (first.name, first.kind) == ("text_encoder", "clip")
  assert (second.name, second.kind) == ("text_encoder_2", "open_clip")
  assert second.prefix == f"{SECOND}model."
  shapes = unet_file(SDXL, (4, 128, 5 * 16 + 128))
  shapes |= text_file(f"{FIRST}model.", "open_clip", TINY_G)
  assert [part.name for part in detect(shapes).text_encoders] == [
    "text_encoder_2"
  ]
  (encoder,) = detect(unet_file(*FAMILIES["ldm-text-f8"][:2])
    | text_file(OLD, "text", LDM_TEXT)).text_encoders  # fmt: skip
  assert text(encoder.config) == LDM_TEXT
  embedder = under(OLD, "classes", class_shapes(10, 24))
  (part,) = detect(unet_file(tiny(out=3), (3, 24)) | embedder).text_encoders
  assert classes(part.config) == LDM_CLASSES


@pytest.mark.parametrize("prefix", [CLIP, "cond_stage_model.transformer."])
def test_sd1s_text_encoder_with_and_without_text_model(prefix):
  shapes = unet_file(SD1, (4, 64)) | text_file(prefix, "clip", TINY_CLIP)
  shapes |= {f"{prefix}embeddings.position_ids": (1, 9)}
  (part,) = detect(shapes).text_encoders
  assert part.prefix == prefix
  assert clip(part.config) == TINY_CLIP


def test_sd2_leaves_out_the_last_block_of_a_complete_text_encoder():
  unet_part = unet_file(SD2, (4, 128))
  (part,) = detect(unet_part | H_PART).text_encoders
  assert clip(part.config) == TINY_H
  # A file made from a folder lacks that block and the projection.
  made = text_file(OPEN, "open_clip", TINY_H)
  assert clip(detect(unet_part | made).text_encoders[0].config) == TINY_H


@pytest.mark.parametrize("prefix", [UNET, ""])
def test_a_single_unet_is_of_a_guessed_family_with_a_warning(prefix):
  found = detect(unet_file(SD1, (4, 64), prefix))
  assert (found.family, found.unet.prefix) == ("sd1", prefix)
  assert found.vae is None and found.text_encoders == ()
  no_vae, no_text = found.warnings
  assert "no autoencoder" in no_vae
  assert "no text encoder" in no_text and "sd1" in no_text


def test_half_of_sdxls_text_encoders():
  """bigG as the only text encoder does not turn a base model into the
  refiner."""
  second = text_file(f"{SECOND}model.", "open_clip", TINY_G)
  found = detect(unet_file(SDXL, (4, 2048, 224)) | second)
  assert found.family == "sdxl"
  assert "only text_encoder_2" in found.warnings[1]


def test_a_complete_model_has_no_warnings():
  shapes = unet_file(SD1, (4, 64)) | vae_file(TINY_VAE) | CLIP_PART
  assert detect(shapes).warnings == ()


@pytest.mark.parametrize(
  "module, fed, family",
  [
    (SD2, (4, 1024), "sd2-v"),
    (SDXL, (4, 2048, 2816), "sdxl"),
    (SDXL, (4, 1280, 2560), "sdxl-refiner"),
    (SD1, (4, 1280), "ldm-text-f8"),
    (tiny(out=3, heads=1), (3, 512), "ldm-classes-f4"),
  ],
)
def test_a_single_unet_is_recognised_by_its_context(module, fed, family):
  found = detect(unet_file(module, fed, ""))
  assert found.family == family
  assert unet(found.unet.config) == module


@pytest.mark.parametrize("prefix", ["", "vae.", VAE])
def test_a_single_autoencoder_is_detected(prefix):
  found = detect(vae_file(TINY_VAE, prefix))
  assert (found.family, found.unet, found.scheduler) == ("vae", None, None)
  assert autoencoder(found.vae.config) == (TINY_VAE, 0.18215)
  assert found.vae.prefix == prefix
  assert "0.13025" in found.warnings[0]
  config = {"vae": {"scaling_factor": 0.5}}
  found = detect(vae_file(TINY_VAE, prefix), config=config)
  assert autoencoder(found.vae.config)[1] == 0.5 and not found.warnings
  assert autoencoder(detect(vae_file(TINY_VQ)).vae.config) == (TINY_VQ, 1.0)


def predicted(shapes, **kwargs):
  found = detect(shapes, **kwargs)
  return schedule(found.scheduler)[1], found.family


SD2_FILE = unet_file(SD2, (4, 128)) | H_PART | vae_file(TINY_VAE)
BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"


def test_sd2_is_recognised_by_the_length_of_its_training():
  base = {"global_step": 875_000}
  assert predicted(SD2_FILE, **base) == ("eps", "sd2")
  assert predicted(SD2_FILE, global_step=140_000) == ("v", "sd2-v")
  assert detect(SD2_FILE, **base).warnings == ()
  assert "prediction=" in detect(SD2_FILE).warnings[0]


@pytest.mark.parametrize("spread, word", [(0.05, "eps"), (0.12, "v")])
def test_sd2_is_recognised_by_the_spread_of_a_bias(spread, word):
  values = np.random.default_rng(1).normal(scale=spread, size=320)
  read = {BIAS: values.astype(np.float16)}.__getitem__
  shapes = SD2_FILE | {BIAS: (320,)}
  assert predicted(shapes, read=read)[0] == word
  notice = detect(shapes, read=read).warnings[0]
  assert repr(word) in notice and "0.09" in notice
  assert detect(shapes, read=read, prediction="eps").warnings == ()
  # SD 2's other models predict noise, whatever that bias is.
  inpainting = unet_file(SD2, (9, 128)) | H_PART | {BIAS: (320,)}
  assert predicted(inpainting, read=read)[0] == "eps"


def test_marks_in_the_file_and_arguments_override_guesses():
  marked = unet_file(SDXL, SIZES) | XL_PARTS | {"v_pred": (0,), "ztsnr": (0,)}
  noise = Schedule(zero_terminal_snr=True)
  assert schedule(detect(marked).scheduler) == (noise, "v")
  assert predicted(marked, prediction="eps")[0] == "eps"
  assert predicted(SD2_FILE, prediction="eps") == ("eps", "sd2")
  config = {"scheduler": {"prediction_type": "epsilon", "beta_end": 0.5}}
  found = detect(SD2_FILE, config=config)
  assert schedule(found.scheduler) == (Schedule(end=0.5), "eps")
  assert found.warnings == ()


def buffers(noise, name="alphas_cumprod", dtype=np.float32):
  """A reader of the table that a file holds as a buffer."""
  table = {"alphas_cumprod": noise.alpha_bar, "betas": noise.betas}[name]
  return {name: table.astype(dtype)}.__getitem__


SD1_FILE = unet_file(SD1, (4, 64)) | vae_file(TINY_VAE) | CLIP_PART


@pytest.mark.parametrize(
  "metadata, predicts",
  [
    ({"modelspec.prediction_type": "v"}, "v"),
    ({"modelspec.prediction_type": "epsilon"}, "eps"),
    ({"ss_v_parameterization": "True"}, "v"),
    ({"ss_v_parameterization": "False"}, "eps"),
  ],
)
def test_metadata_says_what_is_predicted(metadata, predicts):
  found = detect(SD1_FILE, metadata=metadata)
  assert schedule(found.scheduler)[1] == predicts
  assert found.warnings == ()


def test_contradictions_about_the_prediction_name_the_winner():
  """The caller goes first, then the file, then a config."""
  config = {"scheduler": {"prediction_type": "epsilon"}}
  marked = SD1_FILE | {"v_pred": (0,), "ztsnr": (0,)}
  found = detect(marked, config=config)
  assert schedule(found.scheduler) == (Schedule(zero_terminal_snr=True), "v")
  (line,) = found.warnings
  assert "the config's scheduler" in line and "'v' is used" in line
  found = detect(marked, prediction="eps")
  assert schedule(found.scheduler) == (Schedule(), "eps")
  first, second = found.warnings
  assert "v_pred" in first and "'eps' is used" in first
  assert "ztsnr" in second and "not used" in second
  config = {"scheduler": {"rescale_betas_zero_snr": False}}
  (line,) = detect(marked, config=config).warnings
  assert "the file's mark is used" in line
  both = {"modelspec.prediction_type": "epsilon", "ss_v_parameterization": "1"}
  found = detect(SD1_FILE, metadata=both)
  assert schedule(found.scheduler)[1] == "eps" and len(found.warnings) == 1
  (line,) = detect(
    SD1_FILE, metadata={"modelspec.prediction_type": "flow"}
  ).warnings
  assert "'flow'" in line and "not known" in line


@pytest.mark.parametrize(
  "noise, name",
  [
    (Schedule("linear", 0.0001, 0.02), "alphas_cumprod"),
    (Schedule("linear", 0.0001, 0.02), "betas"),
    (Schedule("cosine"), "alphas_cumprod"),
    (LDM, "alphas_cumprod"),
    (Schedule(steps=500), "betas"),
  ],
)
def test_a_files_own_table_of_betas_is_used(noise, name):
  shapes = SD1_FILE | {name: (noise.steps,)}
  found = detect(shapes, read=buffers(noise, name))
  made, _ = schedule(found.scheduler)
  np.testing.assert_allclose(made.alpha_bar, noise.alpha_bar, rtol=1e-3)
  assert name in found.warnings[0] and "are used" in found.warnings[0]


def test_betas_of_the_family_say_nothing_and_unknown_ones_are_named():
  shapes = SD1_FILE | {"alphas_cumprod": (1000,)}
  for dtype in ("float32", "float16", "bfloat16"):
    assert detect(shapes, read=buffers(Schedule(), dtype=dtype)).warnings == ()
  odd = detect(shapes, read=buffers(Schedule("sqrt")))
  assert schedule(odd.scheduler)[0] == Schedule()
  assert "not used" in odd.warnings[0]
  snr = buffers(Schedule(zero_terminal_snr=True))
  found = detect(shapes, read=snr, prediction="v")
  assert schedule(found.scheduler) == (Schedule(zero_terminal_snr=True), "v")
  with pytest.raises(WeightsError, match="--prediction v"):
    detect(shapes, read=snr)
  given = {"scheduler": {"beta_schedule": "scaled_linear", "beta_end": 0.02}}
  found = detect(shapes, read=buffers(Schedule("cosine")), config=given)
  assert schedule(found.scheduler)[0] == Schedule(end=0.02)
  assert "config's scheduler is used" in found.warnings[0]
  with pytest.raises(WeightsError, match="not finite"):
    detect(shapes, read=lambda name: np.full(1000, np.nan))


def test_the_size_of_sd2s_latents_follows_what_it_predicts():
  size = lambda prediction: (
    inputs(detect(SD2_FILE, prediction=prediction).unet.config).size
  )
  assert (size("eps"), size("v")) == (64, 96)


def test_unused_tensors_are_ignored():
  more = dict.fromkeys(
    (
      "betas",
      "alphas_cumprod_prev",
      "sqrt_one_minus_alphas_cumprod",
      "log_one_minus_alphas_cumprod",
      "posterior_mean_coef1",
      "lvlb_weights",
      "logvar",
      "model_ema.decay",
      "model_ema.diffusion_modelinput_blocks00weight",
      "cond_stage_model.logit_scale",
      "cond_stage_model.transformer.text_projection.weight",
      "first_stage_model.loss.logvar",
      "denoiser.sigmas",
    ),
    (1000,),
  )
  shapes = unet_file(SD1, (4, 64)) | vae_file(TINY_VAE) | CLIP_PART
  assert detect(shapes | more) == detect(shapes)


def test_a_config_adds_what_shapes_do_not_show():
  """Heads of 64 do not divide 32 channels; 32 groups do not divide 16."""
  plan = transformer((1, 0), 1, 4, None, True)
  small = UNet(4, 16, (1, 2), 1, plan, groups=8)
  encoder = ClipText(40, 48, 2, 4, 9, activation="gelu")
  shapes = unet_file(small, (4, 48)) | open_clip_file(OPEN, encoder)
  with pytest.raises(WeightsError, match=r"48 features.*'num_attention_heads'"):
    detect(shapes)
  given = {"text_encoder": {"num_attention_heads": 4}}
  with pytest.raises(WeightsError, match=r"'unet'.*'attention_head_dim'"):
    detect(shapes, config=given)
  given["unet"] = {"attention_head_dim": 4, "norm_num_groups": 8}
  found = detect(shapes, config=given, prediction="eps")
  assert unet(found.unet.config) == small
  assert clip(found.text_encoders[0].config) == encoder


def test_a_complete_folders_config_overrides_the_family():
  """A tiny model with its folder's configs, which override everything."""
  folder = {
    "unet": {"_class_name": "UNet2DConditionModel", "attention_head_dim": 4},
    "vae": {"_class_name": "AutoencoderKL", "scaling_factor": 0.5},
    "scheduler": {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.02},
  }
  shapes = unet_file(SD1, (4, 64)) | vae_file(TINY_VAE) | CLIP_PART
  found = detect(shapes, config=folder)
  assert unet(found.unet.config).attention.heads == 4
  assert autoencoder(found.vae.config) == (TINY_VAE, 0.5)
  assert schedule(found.scheduler) == (Schedule(end=0.02), "eps")
  assert found.scheduler["_class_name"] == "EulerDiscreteScheduler"


LONE = unet_file(SD1, (4, 64))
REFUSED = {
  "nothing": ({}, "neither a U-Net nor an autoencoder"),
  "noise": ({"a": (1,), "b": (2,)}, "2 tensors (a, b"),
  "lora": ({"lora_unet_x.lora_up.weight": (1, 1)}, "an adapter (LoRA)"),
  "control": ({"control_model.input_blocks.0.0.weight": (1,)}, "ControlNet"),
  "flux": (
    {"double_blocks.0.img_attn.qkv.weight": (1,)},
    "FLUX.1 without its tensor double_blocks.0.img_attn.norm",
  ),
  "diffusers flux": (
    {"single_transformer_blocks.0.norm.linear.weight": (1,)}, "the folder",
  ),
  "diffusers sd3": (
    {"transformer_blocks.0.attn.add_q_proj.weight": (1,)}, "the folder",
  ),
  "sd3": ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "Diffusion 3"),
  "folder": ({"down_blocks.0.resnets.0.norm1.weight": (1,)}, "the folder"),
  "more": (LONE | {"embedding_manager.x": (1,)}, "embedding_manager.x"),
  "edm": (LONE | {"edm_mean": (4,)}, "EDM"),
  "concat": (unet_file(FACES, (6,)), "6 channels in and 3 out"),
  "unclip": (unet_file(SDXL, (4, 1024, 2048)), "of no family"),
  "layout": (
    unet_file(tiny(depths=(3, 0), mid=3), (4, 32))
    | text_file(OLD, "text", LDM_TEXT),
    "of no family",
  ),
  "uneven": (
    LONE | {f"{UNET}input_blocks.1.1.transformer_blocks.1.x": (1,)},
    "depths [1, 2]",
  ),
  "cut": (
    {k: v for k, v in LONE.items() if "out.2" not in k}, "out.2.weight",
  ),
  "grey": (
    vae_file(TINY_VAE) | {f"{VAE}encoder.conv_in.weight": (32, 1, 3, 3)},
    "1 colours",
  ),
  "churches": (unet_file(CHURCHES, (4,)) | vae_file(TINY_VAE), "scale_factor"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_unknown_is_refused_in_one_line(name):
  shapes, message = REFUSED[name]
  with pytest.raises(WeightsError) as error:
    detect(shapes)
  assert message in str(error.value)
  assert "\n" not in str(error.value)
