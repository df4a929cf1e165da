"""Small models of every family with random weights, made by diffusers."""

import pathlib

import torch
from clip_tokenizer import tokenizer
from diffusers import (
  AutoencoderKL,
  DDIMScheduler,
  DDPMScheduler,
  LDMPipeline,
  LDMTextToImagePipeline,
  StableDiffusionDepth2ImgPipeline,
  StableDiffusionInpaintPipeline,
  StableDiffusionInstructPix2PixPipeline,
  StableDiffusionPipeline,
  StableDiffusionUpscalePipeline,
  StableDiffusionXLImg2ImgPipeline,
  StableDiffusionXLPipeline,
  UNet2DConditionModel,
  UNet2DModel,
  VQModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
  LDMBertConfig,
  LDMBertModel,
)
from transformers import (
  BertTokenizer,
  CLIPTextConfig,
  CLIPTextModel,
  CLIPTextModelWithProjection,
  CLIPTokenizer,
  DPTConfig,
  DPTForDepthEstimation,
  DPTImageProcessor,
)


def text_encoder(
  clip_tokenizer: CLIPTokenizer, width: int, *, activation: str, projection=None
):
  """A text encoder of three blocks."""
  config = CLIPTextConfig(
    vocab_size=len(clip_tokenizer),
    hidden_size=width,
    intermediate_size=3 * width,
    num_hidden_layers=3,
    num_attention_heads=4,
    hidden_act=activation,
    projection_dim=projection or width,
    bos_token_id=clip_tokenizer.bos_token_id,
    eos_token_id=clip_tokenizer.eos_token_id,
  )
  kind = CLIPTextModel if projection is None else CLIPTextModelWithProjection
  return randomized(kind(config))


def randomized(module: torch.nn.Module) -> torch.nn.Module:
  """Random norms and biases too, which are initialised at ones and zeros."""
  for name, parameter in module.named_parameters():
    if parameter.ndim == 1:
      shift = 1.0 if "norm" in name and name.endswith("weight") else 0.0
      parameter.data = shift + 0.1 * torch.randn_like(parameter)
  return module.eval()


def vae(scale: float = 0.18215) -> AutoencoderKL:
  """A small kl-f4."""
  return randomized(
    AutoencoderKL(
      block_out_channels=(16, 32, 32),
      down_block_types=("DownEncoderBlock2D",) * 3,
      up_block_types=("UpDecoderBlock2D",) * 3,
      latent_channels=4,
      norm_num_groups=8,
      layers_per_block=1,
      sample_size=32,
      scaling_factor=scale,
    )
  )


def unet(**changes) -> UNet2DConditionModel:
  """Three levels, the last of them without attention."""
  values = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": (
      "CrossAttnDownBlock2D",
      "CrossAttnDownBlock2D",
      "DownBlock2D",
    ),
    "up_block_types": (
      "UpBlock2D",
      "CrossAttnUpBlock2D",
      "CrossAttnUpBlock2D",
    ),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "sample_size": 8,
  }
  return randomized(UNet2DConditionModel(**(values | changes)))


def scheduler(**changes) -> DDIMScheduler:
  """Stable Diffusion's."""
  values = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
  }
  return DDIMScheduler(**(values | changes))


def sd1(folder: pathlib.Path, **changes) -> StableDiffusionPipeline:
  """SD 1: CLIP with quick gelu, a number of heads, convolutions."""
  clip_tokenizer = tokenizer(folder / "words")
  return StableDiffusionPipeline(
    vae(),
    text_encoder(clip_tokenizer, 32, activation="quick_gelu"),
    clip_tokenizer,
    unet(**changes),
    scheduler(),
    None,
    None,
    requires_safety_checker=False,
  )


def sd2(folder: pathlib.Path) -> StableDiffusionPipeline:
  """SD 2: OpenCLIP's gelu, v-prediction, heads of one width, matrices."""
  clip_tokenizer = tokenizer(folder / "words", pad="!")
  return StableDiffusionPipeline(
    vae(),
    text_encoder(clip_tokenizer, 32, activation="gelu"),
    clip_tokenizer,
    unet(attention_head_dim=[2, 4, 4], use_linear_projection=True),
    scheduler(prediction_type="v_prediction"),
    None,
    None,
    requires_safety_checker=False,
  )


def sdxl(folder: pathlib.Path) -> StableDiffusionXLPipeline:
  """SDXL: two text encoders, a pooled vector and sizes, depths of 1 and 2."""
  first = tokenizer(folder / "words")
  second = tokenizer(folder / "words_2", pad="!")
  return StableDiffusionXLPipeline(
    vae(0.13025),
    text_encoder(first, 32, activation="quick_gelu"),
    text_encoder(second, 48, activation="gelu", projection=40),
    first,
    second,
    _sdxl_unet(80, 40 + 6 * 16),
    scheduler(),
  )


def refiner(folder: pathlib.Path) -> StableDiffusionXLImg2ImgPipeline:
  """SDXL's refiner: the second text encoder alone, and an aesthetic score."""
  clip_tokenizer = tokenizer(folder / "words_2", pad="!")
  return StableDiffusionXLImg2ImgPipeline(
    vae(0.13025),
    None,
    text_encoder(clip_tokenizer, 48, activation="gelu", projection=40),
    None,
    clip_tokenizer,
    _sdxl_unet(48, 40 + 5 * 16),
    scheduler(),
    requires_aesthetics_score=True,
    force_zeros_for_empty_prompt=False,
  )


def _sdxl_unet(context: int, vector: int) -> UNet2DConditionModel:
  return unet(
    attention_head_dim=[2, 4, 4],
    use_linear_projection=True,
    cross_attention_dim=context,
    transformer_layers_per_block=[1, 2, 2],
    addition_embed_type="text_time",
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=vector,
  )


def ldm(folder: pathlib.Path) -> LDMPipeline:
  """Unconditional latent diffusion: plain attention, a vector quantiser."""
  del folder
  return LDMPipeline(
    randomized(
      VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=64,
        norm_num_groups=8,
        sample_size=16,
        scaling_factor=1.0,
      )
    ),
    randomized(
      UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=16,
        layers_per_block=1,
        downsample_padding=1,
      )
    ),
    scheduler(),
  )


def ldm_text(folder: pathlib.Path) -> LDMTextToImagePipeline:
  """LDM's text to image: a transformer over BERT's tokens."""
  vocabulary = ["[PAD]", *(f"[unused{i}]" for i in range(99))]
  vocabulary += ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  vocabulary += [
    "a",
    "cat",
    "fox",
    "in",
    "of",
    "painting",
    "red",
    "snow",
    "the",
  ]
  folder.mkdir(exist_ok=True)
  (folder / "vocab.txt").write_text("\n".join(vocabulary))
  bert = LDMBertModel(
    LDMBertConfig(
      vocab_size=len(vocabulary),
      encoder_layers=2,
      encoder_ffn_dim=128,
      encoder_attention_heads=2,
      head_dim=16,
      d_model=32,
    )
  )
  return LDMTextToImagePipeline(
    vae(),
    randomized(bert),
    BertTokenizer(str(folder / "vocab.txt")),
    unet(),
    scheduler(),
  )


def inpainting(folder: pathlib.Path) -> StableDiffusionInpaintPipeline:
  """SD 1 with a mask and a masked image concatenated with the latents."""
  clip_tokenizer = tokenizer(folder / "words")
  return StableDiffusionInpaintPipeline(
    vae(),
    text_encoder(clip_tokenizer, 32, activation="quick_gelu"),
    clip_tokenizer,
    unet(in_channels=9),
    scheduler(),
    None,
    None,
    requires_safety_checker=False,
  )


def instruct_pix2pix(
  folder: pathlib.Path,
) -> StableDiffusionInstructPix2PixPipeline:
  """SD 1 with the latents of an image to edit after those it diffuses."""
  clip_tokenizer = tokenizer(folder / "words")
  return StableDiffusionInstructPix2PixPipeline(
    vae(),
    text_encoder(clip_tokenizer, 32, activation="quick_gelu"),
    clip_tokenizer,
    unet(in_channels=8),
    scheduler(),
    None,
    None,
    requires_safety_checker=False,
  )


def upscaler(folder: pathlib.Path) -> StableDiffusionUpscalePipeline:
  """The x4 upscaler: latents and a small image, its noise level as a class."""
  clip_tokenizer = tokenizer(folder / "words", pad="!")
  return StableDiffusionUpscalePipeline(
    vae(0.08333),
    text_encoder(clip_tokenizer, 32, activation="gelu"),
    clip_tokenizer,
    unet(
      in_channels=7,
      num_class_embeds=1000,
      only_cross_attention=[True, True, False],
      use_linear_projection=True,
    ),
    low_res_scheduler=DDPMScheduler(),
    scheduler=scheduler(prediction_type="v_prediction"),
  )


def depth(folder: pathlib.Path) -> StableDiffusionDepth2ImgPipeline:
  """SD 2 with a depth map concatenated with the latents, and its estimator."""
  clip_tokenizer = tokenizer(folder / "words", pad="!")
  estimator = DPTForDepthEstimation(
    DPTConfig(
      hidden_size=16,
      num_hidden_layers=4,
      num_attention_heads=2,
      intermediate_size=16,
      image_size=32,
      patch_size=16,
      backbone_out_indices=[0, 1, 2, 3],
      neck_hidden_sizes=[8, 8, 8, 8],
      fusion_hidden_size=8,
    )
  )
  return StableDiffusionDepth2ImgPipeline(
    vae(),
    text_encoder(clip_tokenizer, 32, activation="gelu"),
    clip_tokenizer,
    unet(in_channels=5, use_linear_projection=True),
    scheduler(),
    estimator,
    DPTImageProcessor(),
  )


FAMILIES = {
  "sd1": sd1,
  "sd2": sd2,
  "sdxl": sdxl,
  "refiner": refiner,
  "inpainting": inpainting,
  "upscaler": upscaler,
  "depth": depth,
  "ldm": ldm,
  "ldm_text": ldm_text,
}
