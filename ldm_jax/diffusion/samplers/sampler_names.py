"""The names of samplers and timestep spacings in other programs.

A word that two programs use for two things is resolved by how it is written, or
by the sampler next to it; docs/sampling.md has the table.
"""

import difflib
import re
from typing import Any

from ldm_jax.diffusion.samplers.registry import SAMPLERS

# Names as `_normalize` leaves them: those of CompVis' code, of diffusers'
# classes, of A1111's web UI and of ComfyUI.
_SAMPLERS = {
  "ddim": "ddim",
  "ddpm": "ddpm",
  "plms": "plms",
  "pndm": "plms",
  "pndmprk": "pndm_prk",
  "euler": "euler",
  "flowmatcheuler": "euler",
  "eulera": "euler_ancestral",
  "eulerancestral": "euler_ancestral",
  "heun": "heun",
  "flowmatchheun": "heun",
  "lms": "lms",
  "dpm2": "dpm2",
  "kdpm2": "dpm2",
  "dpm2a": "dpm2_ancestral",
  "dpm2ancestral": "dpm2_ancestral",
  "kdpm2a": "dpm2_ancestral",
  "kdpm2ancestral": "dpm2_ancestral",
  "dpmpp2m": "dpmpp_2m",
  "dpmsolverpp": "dpmpp_2m",
  "dpmsolvermultistep": "dpmpp_2m",
  "dpmpp2msde": "dpmpp_2m_sde",
  "dpmpp2msdegpu": "dpmpp_2m_sde",  # its noise is drawn on the GPU
  "dpmpp2s": "dpmpp_2s",
  "dpmsolversinglestep": "dpmpp_2s",
  "dpmsingle": "dpmpp_2s",
  "dpmpp3s": "dpmpp_3s",
  "deis": "deis",
  "deismultistep": "deis",
  "unipc": "unipc",
  "unipcmultistep": "unipc",
  "unipcbh1": "unipc_bh1",
  "unipcbh2": "unipc_bh2",
  "lcm": "lcm",
  "tcd": "tcd",
}
_SPACINGS = {
  "leading": "leading",
  "uniform": "leading",
  "ddimuniform": "ddim_uniform",
  "ddim": "ddim_uniform",
  "trailing": "trailing",
  "linspace": "linspace",
  "normal": "linspace",
  "quadratic": "quadratic",
  "quad": "quadratic",
  "sgmuniform": "sgm_uniform",
  "simple": "simple",
  "karras": "karras",
  "exponential": "exponential",
  "polyexponential": "exponential",
  "lu": "lu",
  "beta": "beta",
  "betasigmas": "beta_sigmas",
  "kloptimal": "kl_optimal",
  "lcm": "lcm",
}
# The nearest to those of other programs that are not implemented.
_NEAREST = {
  "alignyoursteps": "karras",
  "automatic": "linspace",
  "karrasexponential": "karras",
  "linearquadratic": "beta_sigmas",
  "turbo": "sgm_uniform",
  "cosinedpmsolvermultistep": "dpmpp_2m",
  "ddimcfgpp": "ddim",
  "ddimparallel": "ddim",
  "ddpmparallel": "ddpm",
  "dpmadaptive": "dpmpp_3s",
  "dpmfast": "dpmpp_3s",
  "dpmpp2mcfgpp": "dpmpp_2m",
  "dpmpp2msdeheun": "dpmpp_2m_sde",
  "dpmpp2msdeheungpu": "dpmpp_2m_sde",
  "dpmpp2sa": "dpm2_ancestral",
  "dpmpp2sancestral": "dpm2_ancestral",
  "dpmpp2sancestralcfgpp": "dpm2_ancestral",
  "dpmpp3m": "dpmpp_2m",
  "dpmpp3msde": "dpmpp_2m_sde",
  "dpmpp3msdegpu": "dpmpp_2m_sde",
  "dpmppsde": "dpmpp_2m_sde",
  "dpmppsdegpu": "dpmpp_2m_sde",
  "dpmsolver": "dpmpp_2m",
  "dpmsolversde": "dpmpp_2m_sde",
  "edmdpmsolvermultistep": "dpmpp_2m",
  "edmeuler": "euler",
  "ersde": "dpmpp_2m_sde",
  "eulerancestralcfgpp": "euler_ancestral",
  "eulercfgpp": "euler",
  "expheun2x0": "heun",
  "expheun2x0sde": "dpmpp_2m_sde",
  "flowmatchlcm": "lcm",
  "gradientestimation": "euler",
  "gradientestimationcfgpp": "euler",
  "heunpp2": "heun",
  "ipndm": "plms",
  "ipndmv": "plms",
  "resmultistep": "dpmpp_2m",
  "resmultistepancestral": "dpmpp_2m_sde",
  "resmultistepancestralcfgpp": "dpmpp_2m_sde",
  "resmultistepcfgpp": "dpmpp_2m",
  "restart": "heun",
  "sasolver": "dpmpp_2m_sde",
  "sasolverpece": "dpmpp_2m_sde",
  "seeds2": "dpmpp_2m_sde",
  "seeds3": "dpmpp_2m_sde",
}
# k-diffusion's functions are sample_..., sd-scripts' and A1111's names k_...
_PREFIXES = ("sample_", "k_")
# "dpmpp_2m_k" of InvokeAI and "k_dpmpp_2m_ka" of A1111's web UI.
_SUFFIXES = {"_k": "_karras", "_ka": "_karras"}
SPACING_NAMES = tuple(sorted(set(_SPACINGS.values())))
# ComfyUI's and A1111's spellings of bh1; diffusers' UniPCMultistep is bh2.
_SPELLED = {"uni_pc": "unipc_bh1", "UniPC": "unipc_bh1"}
# Those of LDM's code, whose "uniform" is leading; k-diffusion's is linspace.
_OF_LDM = ("ddim", "ddpm", "plms", "pndm_prk")


def sampler_names() -> tuple[str, ...]:
  """Every sampler's own name, the registered ones among them."""
  return tuple(sorted(SAMPLERS))


def parse_sampler_name(name: str) -> tuple[str, str | None]:
  """ "DPM++ 2M Karras" as ("dpmpp_2m", "karras"); None if no spacing is named.

  Case, spaces, dashes and underscores do not matter, except in "UniPC" and
  "uni_pc"; diffusers' class names and ComfyUI's names are understood. "pndm"
  is plms, as diffusers' PNDM is with Stable Diffusion's settings; "pndm_prk"
  starts with Runge-Kutta steps.

  Raises:
    ValueError: no sampler has this name.
  """
  asked, name = name, _expanded(name)
  for spelling, own in _SPELLED.items():
    rest = _normalize(name.removeprefix(spelling))
    if name.startswith(spelling) and rest in ("", *_SPACINGS):
      return own, parse_timestep_spacing(rest, own) if rest else None
  samplers = _SAMPLERS | {_normalize(own): own for own in SAMPLERS}
  normalized = _normalize(name)
  if normalized in samplers:
    return samplers[normalized], None
  for suffix in _SPACINGS:
    sampler = samplers.get(normalized.removesuffix(suffix))
    if sampler is not None and normalized.endswith(suffix):
      return sampler, parse_timestep_spacing(suffix, sampler)
  raise ValueError(
    _unknown("sampler", asked, normalized, samplers, sampler_names())
  )


def parse_timestep_spacing(name: str, sampler: Any = None) -> str:
  """ "SGM Uniform" as "sgm_uniform".

  Args:
    sampler: what it is for: "uniform" is LDM's, leading, or k-diffusion's,
      which A1111's web UI has and which is linspace.

  Raises:
    ValueError: no timestep spacing has this name.
  """
  normalized = _normalize(name)
  if normalized not in _SPACINGS:
    raise ValueError(
      _unknown("timestep spacing", name, normalized, _SPACINGS, SPACING_NAMES)
    )
  if normalized == "uniform" and sampler not in (None, *_OF_LDM):
    return "linspace"
  return _SPACINGS[normalized]


def _expanded(name: str) -> str:
  """A name without other programs' prefixes and abbreviations."""
  for prefix in _PREFIXES:
    name = name.removeprefix(prefix)
  for suffix, whole in _SUFFIXES.items():
    if name.endswith(suffix):
      return name.removesuffix(suffix) + whole
  return name


def _normalize(name: str) -> str:
  """Small letters and digits alone."""
  name = re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))
  return name.removesuffix("scheduler").removesuffix("discrete")


def _unknown(
  kind: str,
  name: str,
  normalized: str,
  table: dict[str, str],
  names: tuple[str, ...],
) -> str:
  """An error message with the nearest name and all names."""
  plain = (normalized.removesuffix(spacing) for spacing in ("", *_SPACINGS))
  if found := next(filter(_NEAREST.__contains__, plain), None):
    nearest = _NEAREST[found]
    return f"{kind} {name!r} is not implemented; the nearest is {nearest}"
  close = difflib.get_close_matches(normalized, table, 1)
  hint = f"did you mean {table[close[0]]}? " if close else ""
  return f"no {kind} is called {name!r}; {hint}there are {', '.join(names)}"
