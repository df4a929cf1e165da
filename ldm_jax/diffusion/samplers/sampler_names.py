"""The names of samplers and timestep spacings in other programs."""

import difflib
import re

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
  "eulera": "euler_ancestral",
  "eulerancestral": "euler_ancestral",
  "heun": "heun",
  "lms": "lms",
  "dpm2": "dpm2",
  "kdpm2": "dpm2",
  "dpm2a": "dpm2_ancestral",
  "dpm2ancestral": "dpm2_ancestral",
  "kdpm2ancestral": "dpm2_ancestral",
  "dpmpp2m": "dpmpp_2m",
  "dpmsolverpp": "dpmpp_2m",
  "dpmsolvermultistep": "dpmpp_2m",
  "dpmpp2msde": "dpmpp_2m_sde",
  "dpmpp2s": "dpmpp_2s",
  "dpmsolversinglestep": "dpmpp_2s",
  "dpmpp3s": "dpmpp_3s",
  "deis": "deis",
  "deismultistep": "deis",
  "unipc": "unipc",
  "unipcmultistep": "unipc",
  "unipcbh1": "unipc_bh1",
  "unipcbh2": "unipc",
  "lcm": "lcm",
  "tcd": "tcd",
}
_SPACINGS = {
  "leading": "leading",
  "uniform": "leading",
  "ddimuniform": "leading",
  "trailing": "trailing",
  "linspace": "linspace",
  "normal": "linspace",
  "quadratic": "quadratic",
  "quad": "quadratic",
  "sgmuniform": "sgm_uniform",
  "simple": "simple",
  "karras": "karras",
  "exponential": "exponential",
  "beta": "beta",
  "kloptimal": "kl_optimal",
  "lcm": "lcm",
}
SPACING_NAMES = tuple(sorted(set(_SPACINGS.values())))


def sampler_names() -> tuple[str, ...]:
  """Every sampler's own name, the registered ones among them."""
  return tuple(sorted(SAMPLERS))


def parse_sampler_name(name: str) -> tuple[str, str | None]:
  """ "DPM++ 2M Karras" as ("dpmpp_2m", "karras"); None if no spacing is named.

  Case, spaces, dashes and underscores do not matter; diffusers' class names
  and ComfyUI's names are understood. "pndm" is plms, as diffusers' PNDM is
  with Stable Diffusion's settings; "pndm_prk" starts with Runge-Kutta steps.

  Raises:
    ValueError: no sampler has this name.
  """
  samplers = _SAMPLERS | {_normalize(own): own for own in SAMPLERS}
  normalized = _normalize(name)
  if normalized in samplers:
    return samplers[normalized], None
  for suffix, timestep_spacing in _SPACINGS.items():
    sampler = normalized.removesuffix(suffix)
    if sampler in samplers and normalized.endswith(suffix):
      return samplers[sampler], timestep_spacing
  raise ValueError(
    _unknown("sampler", name, normalized, samplers, sampler_names())
  )


def parse_timestep_spacing(name: str) -> str:
  """ "SGM Uniform" as "sgm_uniform".

  Raises:
    ValueError: no timestep spacing has this name.
  """
  normalized = _normalize(name)
  if normalized not in _SPACINGS:
    raise ValueError(
      _unknown("timestep spacing", name, normalized, _SPACINGS, SPACING_NAMES)
    )
  return _SPACINGS[normalized]


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
  close = difflib.get_close_matches(normalized, table, 1)
  hint = f"did you mean {table[close[0]]}? " if close else ""
  return f"no {kind} is called {name!r}; {hint}there are {', '.join(names)}"
