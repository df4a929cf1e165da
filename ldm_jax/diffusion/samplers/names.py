"""What other programs call samplers and grids, in any spelling."""

import difflib
import re

# Words as they are left by `_plain`: of CompVis, diffusers' classes, A1111's
# web UI and ComfyUI.
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
SAMPLER_NAMES = tuple(sorted(set(_SAMPLERS.values())))
SPACING_NAMES = tuple(sorted(set(_SPACINGS.values())))


def parse_sampler_name(text: str) -> tuple[str, str | None]:
  """ "DPM++ 2M Karras" as ("dpmpp_2m", "karras"); None where no grid is named.

  Case, spaces, dashes and underscores do not matter; diffusers' class names
  and ComfyUI's words are understood. "pndm" is plms, as diffusers' PNDM is
  with Stable Diffusion's settings; "pndm_prk" begins with Runge-Kutta steps.

  Raises:
    ValueError: nobody calls a sampler so.
  """
  plain = _plain(text)
  if plain in _SAMPLERS:
    return _SAMPLERS[plain], None
  for word, timestep_spacing in _SPACINGS.items():
    if plain.removesuffix(word) in _SAMPLERS and plain.endswith(word):
      return _SAMPLERS[plain.removesuffix(word)], timestep_spacing
  raise ValueError(_unknown("sampler", text, plain, _SAMPLERS, SAMPLER_NAMES))


def parse_timestep_spacing(text: str) -> str:
  """The grid of a name.

  Raises:
    ValueError: there is none.
  """
  plain = _plain(text)
  if plain not in _SPACINGS:
    raise ValueError(_unknown("grid", text, plain, _SPACINGS, SPACING_NAMES))
  return _SPACINGS[plain]


def _plain(text: str) -> str:
  """Small letters and figures alone."""
  words = re.sub(r"[^a-z0-9]", "", text.lower().replace("++", "pp"))
  return words.removesuffix("scheduler").removesuffix("discrete")


def _unknown(kind, text, plain, table, names):
  close = difflib.get_close_matches(plain, table, 1)
  hint = f"did you mean {table[close[0]]}? " if close else ""
  return f"no {kind} is called {text!r}; {hint}there are {', '.join(names)}"
