"""A plan as a text table."""

from ldm_jax.planning.request import PlanResult
from ldm_jax.runtime.devices.aot import GIB


def plan_table(result: PlanResult) -> str:
  """Lines of a name and a value."""
  what = "a training step"
  if result.sampler_steps:
    what = f"a sampler of {result.sampler_steps} steps"
  fits = {True: "yes", False: "no", None: "unknown memory of the device"}
  mesh = " x ".join(f"{k}={v}" for k, v in result.mesh.items())
  batch = f"{result.batch} ({result.images_per_device:g} per device)"
  rows = [
    ("program", what),
    ("devices", f"{result.devices} x {result.topology}"),
    ("mesh", mesh),
    ("batch", batch),
    ("fits", fits[result.fits]),
  ]
  if result.refusal is not None:
    rows.append(("compiler", result.refusal))
  else:
    rows += _memory_rows(result)
  largest = result.largest_batch
  if largest is not None:
    is_known = largest.images is not None
    about = f"about {largest.images}" if is_known else "unknown"
    rows.append(("largest batch", f"{about}: {largest.basis}"))
  rows += [
    ("operations", f"{result.flops / 1e12:.3f} TFLOP"),
    ("compile time", f"{result.compile_seconds} s"),
  ]
  return "\n".join(f"{name:<16}{value}" for name, value in rows)


def _memory_rows(result: PlanResult) -> list[tuple[str, str]]:
  """Bytes by what they are, and collectives."""
  limit = result.memory_limit
  rows = [
    (name, _gib(size))
    for name, size in result.parts.items()
    if size >= GIB / 200
  ]
  rows += [
    ("temporaries", _gib(result.temporaries)),
    ("total", _gib(result.total) + (f" of {_gib(limit)}" if limit else "")),
  ]
  if result.collectives is None:
    rows.append(("collectives", "not shown by the compiler"))
  elif result.collectives_of == "partitioned":
    about = "before the compiler's changes, as it prints no program"
    rows.append(("collectives", about))
  # A space, for names may be as wide as the column.
  return rows + [
    (f"{kind} ", f"{count}, {_gib(size)}")
    for kind, (count, size) in sorted((result.collectives or {}).items())
  ]


def _gib(size: int | float) -> str:
  return f"{size / GIB:.2f} GiB"
