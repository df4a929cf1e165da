"""Exports a guided sampler that runs without this package."""

from ldm_jax.sampling.export.export import ExportRequest, ExportResult, export

__all__ = ["ExportRequest", "ExportResult", "export"]
