"""Published FLUX.1 models, in and out."""
