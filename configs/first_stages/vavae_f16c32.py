"""VA-VAE's f16d32: 256 x 256 x 3 to 16 x 16 x 32, aligned to DINOv2.

Yao et al. 2025. The network, the learning rate, the weights, both margins and
`disc_start` are those of the authors' published config f16d32_vfdinov2.yaml;
the batch of 256 and the crops are ours. 69.9 M parameters.

Set --config.task.regularizers.0.path to the folder of facebook/dinov2-large.
For the authors' own file, dinov2_vitl14_pretrain.pth, also set
--config.task.regularizers.0.encoder.position_offset=0.1.
"""

from base import f16

from ldm_jax.training.first_stage.feature_alignment import FeatureAlignment


def get_config():
  return f16(32, regularizers=(FeatureAlignment(path="models/dinov2-large"),))
