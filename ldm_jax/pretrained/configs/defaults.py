"""Defaults of the classes of diffusers 0.42.1 and transformers 5.

They are those of the classes' constructors. See `strict_config.Schema` for the
meaning of the three groups.
"""

from ldm_jax.pretrained.configs.strict_config import Schema

_UNET = {
  "act_fn": ("silu", "swish"),
  "downsample_padding": (1,),
  "flip_sin_to_cos": (True,),
  "freq_shift": (0,),
  "mid_block_scale_factor": (1,),
  "norm_eps": (1e-5,),
  "time_embedding_type": ("positional",),
}

# Attention with a context. Softmax is float32, whatever upcast_attention says;
# mid_block_only_cross_attention is for a block that is not supported.
CONDITIONAL = Schema(
  "UNet2DConditionModel",
  defaults={
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": None,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
    "only_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "norm_num_groups": 32,
    "dropout": 0.0,
    "time_cond_proj_dim": None,
  },
  demands=_UNET
  | {
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_out_scale_factor": (1,),
  },
  passive=(
    "addition_embed_type_num_heads",
    "mid_block_only_cross_attention",
    "upcast_attention",
  ),
)

# Attention to pixels alone.
UNCONDITIONAL = Schema(
  "UNet2DModel",
  defaults={
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": None,
    "down_block_types": ("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
    "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "add_attention": True,
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "resnet_time_scale_shift": "default",
    "norm_num_groups": 32,
    "dropout": 0.0,
  },
  demands=_UNET | {"mid_block_type": ("UNetMidBlock2D",)},
  passive=("num_train_timesteps",),
)

# Blocks of the encoder and of the decoder, and whether they attend.
CROSS_BLOCKS = (
  {"CrossAttnDownBlock2D": True, "DownBlock2D": False},
  {"CrossAttnUpBlock2D": True, "UpBlock2D": False},
)
# Of UNet2DModel, by `UNet.resampling`.
PLAIN_BLOCKS = {
  "conv": (
    {"AttnDownBlock2D": True, "DownBlock2D": False},
    {"AttnUpBlock2D": True, "UpBlock2D": False},
  ),
  "block": (
    {"AttnDownBlock2D": True, "ResnetDownsampleBlock2D": False},
    {"AttnUpBlock2D": True, "ResnetUpsampleBlock2D": False},
  ),
}
RESAMPLING = {"conv": "conv", "resnet": "block"}
MODULATION = {"default": "add", "scale_shift": "scale_shift"}

ENCODER_BLOCKS = (
  {"AttnDownEncoderBlock2D": True, "DownEncoderBlock2D": False},
  {"AttnUpDecoderBlock2D": True, "UpDecoderBlock2D": False},
)

SCALING_FACTOR = 0.18215  # of a config without one: that of SD 1 and 2
_AUTOENCODER = {
  "down_block_types": ("DownEncoderBlock2D",),
  "up_block_types": ("UpDecoderBlock2D",),
  "block_out_channels": (64,),
  "layers_per_block": 1,
  "norm_num_groups": 32,
  "scaling_factor": SCALING_FACTOR,
  "mid_block_add_attention": True,
}
_IMAGES = {
  "act_fn": ("silu", "swish"),
  "in_channels": (3,),
  "out_channels": (3,),
}

# force_upcast keeps diffusers from computing in float16.
KL = Schema(
  "AutoencoderKL",
  defaults=_AUTOENCODER
  | {
    "latent_channels": 4,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
  },
  demands=_IMAGES,
  passive=("force_upcast", "sample_size"),
)

# FLUX.2's, whose latents are normalised by a batch norm.
FLUX2 = Schema(
  "AutoencoderKLFlux2",
  defaults={
    "batch_norm_eps": 1e-4,
    "block_out_channels": (128, 256, 512, 512),
    "decoder_block_out_channels": None,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "latent_channels": 32,
    "layers_per_block": 2,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "patch_size": (2, 2),
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
  },
  demands=_IMAGES,
  passive=("batch_norm_momentum", "force_upcast", "sample_size"),
)

# A decoder of its own widths, which may see the known part of an image;
# block_out_channels repeats up_block_out_channels.
ASYMMETRIC = Schema(
  "AsymmetricAutoencoderKL",
  defaults={
    "down_block_out_channels": (64,),
    "down_block_types": ("DownEncoderBlock2D",),
    "latent_channels": 4,
    "layers_per_down_block": 1,
    "layers_per_up_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": SCALING_FACTOR,
    "up_block_out_channels": (64,),
    "up_block_types": ("UpDecoderBlock2D",),
  },
  demands=_IMAGES,
  passive=("block_out_channels", "force_upcast", "sample_size"),
)

VQ = Schema(
  "VQModel",
  defaults=_AUTOENCODER
  | {"latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None},
  demands=_IMAGES | {"norm_type": ("group",)},
  passive=("force_upcast", "sample_size"),
)

# Of all of transformers: other networks, or other forms of the weights.
ENCODER = {
  "add_cross_attention": (False, None),
  "cross_attention_hidden_size": (None,),
  "is_decoder": (False, None),
  "is_encoder_decoder": (False, None),
  "pruned_heads": ({}, None),
  "quantization_config": (None,),
}

CLIP = Schema(
  "CLIPTextModel",
  defaults={
    "architectures": (),
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 512,
    "eos_token_id": 49407,
  },
  demands={"layer_norm_eps": (1e-5,), "model_type": ("clip_text_model",)}
  | ENCODER,
  passive=None,
)

VISION = Schema(
  "CLIPVisionModelWithProjection",
  defaults={
    "architectures": (),
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "projection_dim": 512,
  },
  demands={
    "layer_norm_eps": (1e-5,),
    "num_channels": (3,),
    "model_type": ("clip_vision_model",),
  }
  | ENCODER,
  passive=None,
)

_DINO = {
  "architectures": (),
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "mlp_ratio": 4,
  "image_size": 224,
  "use_swiglu_ffn": False,
}
_DINO_DEMANDS = {
  "hidden_act": ("gelu",),
  "layer_norm_eps": (1e-6,),
  "num_channels": (3,),
  "qkv_bias": (True,),
} | ENCODER

DINO = Schema(
  "Dinov2Model",
  defaults=_DINO | {"patch_size": 14},
  demands=_DINO_DEMANDS | {"model_type": ("dinov2",)},
  passive=None,
)

DINO_WITH_REGISTERS = Schema(
  "Dinov2WithRegistersModel",
  defaults=_DINO | {"patch_size": 16, "num_register_tokens": 4},
  demands=_DINO_DEMANDS | {"model_type": ("dinov2_with_registers",)},
  passive=None,
)

# LDM's text encoder, as diffusers' LDMTextToImagePipeline calls it.
BERT = Schema(
  "LDMBertModel",
  defaults={
    "vocab_size": 30522,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 8,
    "head_dim": 64,
    "encoder_ffn_dim": 5120,
    "max_position_embeddings": 77,
  },
  demands={"activation_function": ("gelu",), "model_type": ("ldmbert",)}
  | ENCODER,
  passive=None,
)

# LDM's, which diffusers does not have.
CLASSES = Schema(
  "ClassEmbedder",
  defaults={"n_classes": 1000, "embed_dim": 512},
  demands={"key": ("class", "class_label")},
)
