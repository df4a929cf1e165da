"""Latent diffusion in JAX and Flax: both stages, on a laptop, GPUs or a pod.

Generate:
  Pipeline           images from a run, a diffusers folder or a single file
  GenerationRequest  what to generate, validated

Train and measure:
  train, evaluate, report, prepare, plan, verify, retrieve
  evaluate_first_stages  autoencoders side by side

  Run                opens a run folder: experiment, checkpoints, parameters

Serve:
  serve              a web page and an HTTP API, many clients in one batch

Weights:
  from_pretrained, from_single_file, save_pretrained, save_single_file
  latent_scale       what latents of an autoencoder are multiplied by
  open_model         module and parameters of any model, runs included
  convert, inspect, export, push_to_hub

Folders: `nn` networks, `diffusion` schedules and samplers, `data` sources and
transforms, `weights` foreign files, `runtime` meshes and checkpoints;
`training`, `sampling`, `evaluation`, `planning` and `pretrained` are the
library behind the commands in `cli`. Exceptions are in `errors`.
"""

import importlib

__version__ = "0.2.0"

# Public names and their modules; none is imported before it is used.
_PUBLIC = {
  "Pipeline": "ldm_jax.sampling.pipeline",
  "GenerationRequest": "ldm_jax.sampling.request",
  "GenerationResult": "ldm_jax.sampling.outputs",
  "SamplerConfig": "ldm_jax.diffusion.samplers",
  "register_sampler": "ldm_jax.diffusion.samplers",
  "export": "ldm_jax.sampling.export.export",
  "ExportRequest": "ldm_jax.sampling.export.export",
  "Experiment": "ldm_jax.config",
  "Run": "ldm_jax.run",
  "train": "ldm_jax.training.train",
  "TrainingResult": "ldm_jax.training.train",
  "prepare": "ldm_jax.training.preparation.prepare",
  "PrepareRequest": "ldm_jax.training.preparation.request",
  "verify": "ldm_jax.training.verify",
  "evaluate": "ldm_jax.evaluation.evaluate",
  "EvaluationRequest": "ldm_jax.evaluation.request",
  "EvaluationResult": "ldm_jax.evaluation.request",
  "evaluate_first_stages": "ldm_jax.evaluation.first_stage.evaluate",
  "FirstStageRequest": "ldm_jax.evaluation.first_stage.request",
  "FirstStageResult": "ldm_jax.evaluation.first_stage.request",
  "report": "ldm_jax.evaluation.report",
  "ReportRequest": "ldm_jax.evaluation.report",
  "retrieve": "ldm_jax.evaluation.retrieval",
  "serve": "ldm_jax.serving.serve",
  "ServeRequest": "ldm_jax.serving.serve",
  "RetrievalRequest": "ldm_jax.evaluation.retrieval",
  "plan": "ldm_jax.planning.plan",
  "PlanRequest": "ldm_jax.planning.request",
  "from_pretrained": "ldm_jax.pretrained.from_pretrained",
  "from_single_file": "ldm_jax.pretrained.from_pretrained",
  "latent_scale": "ldm_jax.pretrained.from_pretrained",
  "save_pretrained": "ldm_jax.pretrained.save_pretrained",
  "save_single_file": "ldm_jax.pretrained.save_pretrained",
  "open_model": "ldm_jax.pretrained.open_model",
  "LoadOptions": "ldm_jax.pretrained.open_model",
  "convert": "ldm_jax.pretrained.convert",
  "ConvertRequest": "ldm_jax.pretrained.convert",
  "inspect": "ldm_jax.pretrained.inspect",
  "push_to_hub": "ldm_jax.pretrained.hub.push",
  "PushRequest": "ldm_jax.pretrained.hub.push",
  "LatentDiffusion": "ldm_jax.latent_diffusion",
  "Autoencoder": "ldm_jax.nn.autoencoder",
  "UNet": "ldm_jax.nn.unet",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module 'ldm_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
