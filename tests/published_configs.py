"""Configurations as the folders of published models hold them."""

CONDITIONAL = {"_class_name": "UNet2DConditionModel"}
CROSS = ["CrossAttnDownBlock2D", "CrossAttnUpBlock2D"]
BARE = ["DownBlock2D", "UpBlock2D"]


def blocks(attends, attending=CROSS, bare=BARE):
  """Names of blocks, for levels from the finest."""
  name = lambda side, a: (attending if a else bare)[side]
  return {
    "down_block_types": [name(0, a) for a in attends],
    "up_block_types": [name(1, a) for a in reversed(attends)],
  }


# The earliest config of SD 1.4's repository has few more keys.
SD1 = CONDITIONAL | {
  "act_fn": "silu",
  "attention_head_dim": 8,
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": False,
  "cross_attention_dim": 768,
  "downsample_padding": 1,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "in_channels": 4,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "out_channels": 4,
  "sample_size": 64,
  **blocks((1, 1, 1, 0)),
}
SD2 = SD1 | {
  "attention_head_dim": [5, 10, 20, 20],
  "cross_attention_dim": 1024,
  "dual_cross_attention": False,
  "num_class_embeds": None,
  "only_cross_attention": False,
  "upcast_attention": True,
  "use_linear_projection": True,
}
SDXL = SD2 | {
  "addition_embed_type": "text_time",
  "addition_embed_type_num_heads": 64,
  "addition_time_embed_dim": 256,
  "attention_head_dim": [5, 10, 20],
  "attention_type": "default",
  "block_out_channels": [320, 640, 1280],
  "class_embed_type": None,
  "class_embeddings_concat": False,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "cross_attention_dim": 2048,
  "encoder_hid_dim": None,
  "mid_block_only_cross_attention": None,
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "projection_class_embeddings_input_dim": 2816,
  "resnet_out_scale_factor": 1.0,
  "resnet_time_scale_shift": "default",
  "sample_size": 128,
  "time_cond_proj_dim": None,
  "time_embedding_type": "positional",
  "transformer_layers_per_block": [1, 2, 10],
  **blocks((0, 1, 1)),
}
UPSCALER = SD2 | {
  "attention_head_dim": 8,
  "block_out_channels": [256, 512, 512, 1024],
  "in_channels": 7,
  "num_class_embeds": 1000,
  "only_cross_attention": [True, True, True, False],
  "sample_size": 128,
  **blocks((0, 1, 1, 1)),
}
PLAIN = ["AttnDownBlock2D", "AttnUpBlock2D"]
CELEBA = {
  "_class_name": "UNet2DModel",
  "attention_head_dim": 32,
  "block_out_channels": [224, 448, 672, 896],
  "in_channels": 3,
  "layers_per_block": 2,
  "out_channels": 3,
  "sample_size": 64,
  **blocks((0, 1, 1, 1), PLAIN),
}
CHURCHES = CELEBA | {
  "attention_head_dim": [24, 48, 48, 96, 96],
  "attn_norm_num_groups": 32,
  "block_out_channels": [192, 384, 384, 768, 768],
  "downsample_type": "resnet",
  "in_channels": 4,
  "out_channels": 4,
  "resnet_time_scale_shift": "scale_shift",
  "upsample_type": "resnet",
  **blocks(
    (1, 1, 1, 1, 0),
    PLAIN,
    ["ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"],
  ),
}

# By their names in published_networks.py, where the counts come from.
CONFIGS = {
  "sd1": SD1,
  "sd1-inpainting": SD1 | {"in_channels": 9},
  "txt2img-1p4B": SD1 | {"cross_attention_dim": 1280},
  "sd2": SD2,
  "sd2-inpainting": SD2 | {"in_channels": 9},
  "sd2-depth": SD2 | {"in_channels": 5},
  "sdxl-base": SDXL,
  "sdxl-refiner": SDXL
  | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    **blocks((0, 1, 1, 0)),
  },
  "x4-upscaler": UPSCALER,
  "cin256-v2": SD1
  | {
    "attention_head_dim": 1,
    "block_out_channels": [192, 384, 576, 960],
    "cross_attention_dim": 512,
    "in_channels": 3,
    "out_channels": 3,
    **blocks((0, 1, 1, 1)),
  },
  "celeba256": CELEBA,
  "lsun_churches256": CHURCHES,
}

KL_F8 = {
  "_class_name": "AutoencoderKL",
  "act_fn": "silu",
  "block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "in_channels": 3,
  "latent_channels": 4,
  "layers_per_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "sample_size": 512,
  "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VQ_F4 = KL_F8 | {
  "_class_name": "VQModel",
  "block_out_channels": [128, 256, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 3,
  "latent_channels": 3,
  "num_vq_embeddings": 8192,
  "up_block_types": ["UpDecoderBlock2D"] * 3,
}
KL_F16 = KL_F8 | {
  "block_out_channels": [128, 128, 256, 256, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
  "latent_channels": 16,
  "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
}

# Beyond Stable Diffusion 1 to XL: no quant convolutions, other channels.
KL_16 = KL_F8 | {
  "latent_channels": 16,
  "use_post_quant_conv": False,
  "use_quant_conv": False,
}
SD3_VAE = KL_16 | {"scaling_factor": 1.5305, "shift_factor": 0.0609}
FLUX_VAE = KL_16 | {"scaling_factor": 0.3611, "shift_factor": 0.1159}
FLUX2_VAE = KL_F8 | {
  "_class_name": "AutoencoderKLFlux2",
  "batch_norm_eps": 1e-4,
  "latent_channels": 32,
  "patch_size": [2, 2],
}
ASYMMETRIC_VAE = {
  "_class_name": "AsymmetricAutoencoderKL",
  "act_fn": "silu",
  "down_block_out_channels": [128, 256, 512, 512],
  "down_block_types": ["DownEncoderBlock2D"] * 4,
  "in_channels": 3,
  "latent_channels": 4,
  "layers_per_down_block": 2,
  "layers_per_up_block": 2,
  "norm_num_groups": 32,
  "out_channels": 3,
  "up_block_out_channels": [192, 384, 768, 768],
  "up_block_types": ["UpDecoderBlock2D"] * 4,
}

CLIP_L = {
  "architectures": ["CLIPTextModel"],
  "eos_token_id": 2,
  "hidden_act": "quick_gelu",
  "hidden_size": 768,
  "intermediate_size": 3072,
  "layer_norm_eps": 1e-05,
  "max_position_embeddings": 77,
  "model_type": "clip_text_model",
  "num_attention_heads": 12,
  "num_hidden_layers": 12,
  "projection_dim": 768,
  "vocab_size": 49408,
}
VIT_H = CLIP_L | {
  "hidden_act": "gelu",
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_attention_heads": 16,
  "num_hidden_layers": 23,
  "projection_dim": 512,
}
BIG_G = VIT_H | {
  "architectures": ["CLIPTextModelWithProjection"],
  "hidden_size": 1280,
  "intermediate_size": 5120,
  "num_attention_heads": 20,
  "num_hidden_layers": 32,
  "projection_dim": 1280,
}
