"""LDM-4 by segmentation map, 256 x 256, on landscapes with COCO's 182 classes.

No figure was published. U-Net 215.2 M parameters, the map's rescaler 546.
"""

from base import L1, folders, second_stage, self_attention

from ldm_jax.nn.conditioners.spatial import SegmentationEmbedder
from ldm_jax.nn.unet import UNet


def get_config():
  unet = UNet(3, 128, (1, 4, 8), 2, self_attention((0, 0, 0), heads=8))
  return second_stage(
    unet,
    folders("landscapes", 256),  # with NAME.map.png next to each image
    stage="vq_f4",
    batch=48,
    rate=4.8e-5,
    steps=360_000,
    schedule=L1,
    conditioners=(SegmentationEmbedder(classes=182, width=3, halvings=2),),
    norm="l1",
  )
