"""Claims about latent diffusion, measured on built-in data.

  python benchmarks/claims.py one     compress before you denoise
  python benchmarks/claims.py two     what a bottleneck loses
  python benchmarks/claims.py three   the KL weight, the scale of latents
  python benchmarks/claims.py four    f, channels, KL, VQ and DC-AE together

Each takes less than half an hour on two CPU cores, resumes when it is run
again, prints one line of JSON for each measurement, and writes a figure into
benchmarks/claims/. Results are in benchmarks/claims.md. `make claim-one`
installs what it needs.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys

RUNS = os.path.join("runs", "claims")
CACHE = os.path.join(RUNS, "compiled")
FIGURES = os.path.join("benchmarks", "claims")
FACTORS = {1: "(1,)", 2: "(1, 2)", 4: "(1, 2, 2)", 8: "(1, 2, 2, 2)"}
WIDER = FACTORS | {16: "(1, 2, 2, 2, 2)", 32: "(1, 2, 2, 2, 2, 2)"}
# Levels of the U-Net, and transformers in each: at 8 x 8 positions and below.
LEVELS = {
  1: ("(1, 1, 1, 2)", "(0, 0, 0, 1)"),
  2: ("(1, 1, 2)", "(0, 0, 1)"),
  4: ("(1, 2)", "(0, 1)"),
  8: ("(1, 2)", "(1, 1)"),
}

# Sampling of the evaluated images, and their number in pixels and in latents.
STEPS, GUIDANCE, FEW, MANY = 15, 4.0, 64, 128
# Claim one: seconds of training before each evaluation.
TIMES = (90, 180)
# The attribute learned first, and its chance; pixels learn no more in this
# time.
FIRST, CHANCE = "colour_accuracy", 1 / 8
# Claim two: f, channels, and the config.
BOTTLENECKS = [
  *((f, c, "autoencoder") for f in (2, 4, 8) for c in (4, 16)),
  *((f, 4, "vq") for f in (2, 4, 8)),
]
# To see what a bottleneck loses, all else must have been learned: in 100 s Muon
# has 29 dB at f = 2 and 16 channels, AdamW 22.
LEARNED = {
  "data__batch": 4,
  "steps": 900,
  "task__optimizer__decay_steps": 900,
  "task__optimizer__muon": 1e-2,
}
# Claim three: the KL weight, and the latents' scale, None for 1 / std.
KL_WEIGHTS = [(0.0, None), (1e-6, None), (1e-3, None), (1.0, None), (1e-6, 1.0)]
ONE, TWO = 600, 350  # steps of its stages
QUALITY = ("valid_fraction", "class_accuracy")
# Claim four: kind, f and channels on the glyphs; which of them a second stage
# is trained on, and for how many seconds; and which are trained on photographs.
STAGES = [
  *(("kl", 4, c) for c in (4, 16)),
  *(("kl", 8, c) for c in (4, 16)),
  *(("kl", 16, c) for c in (16, 64)),
  ("kl", 32, 64),
  *(("vq", f, 4) for f in (4, 8)),
  ("dc", 32, 32),
  ("dc", 32, 64),
]
SECOND = [("kl", 4, 4), ("kl", 8, 16), ("kl", 16, 64), ("dc", 32, 64)]
SECONDS, FOUR, PHOTO_STEPS = 45, 250, 200  # of stage two; steps of stage one
PHOTOGRAPHS = [("kl", 4, 4), ("kl", 8, 16), ("kl", 16, 64), ("kl", 32, 64)]
DEEPER = LEVELS | {16: ("(1, 2)", "(1, 1)"), 32: ("(2,)", "(1,)")}
LOOKS = ("psnr", "ssim")
SHOWN = (
  ("psnr",),
  ("nats",),
  ("std_least", "std_most", "posterior_std"),
  QUALITY,
)


def call(*flags):
  """The last line of a command, as JSON."""
  print("$", *flags, file=sys.stderr)
  command = [sys.executable, *flags]
  cache = {"JAX_COMPILATION_CACHE_DIR": os.path.abspath(CACHE)}
  done = subprocess.run(
    command, stdout=subprocess.PIPE, text=True, env=cache | os.environ
  )
  if done.returncode:
    sys.exit(done.returncode)
  return json.loads(done.stdout.strip().splitlines()[-1])


def train(config, name, **fields):
  """Trains a config with these fields into runs/claims/NAME; its metrics."""
  from ldm_jax.runtime.monitoring import metric_writer

  folder = os.path.join(RUNS, name)
  flags = [f"--config.{k.replace('__', '.')}={v}" for k, v in fields.items()]
  call(
    "train.py", f"--config=configs/{config}.py", f"--workdir={folder}", *flags
  )
  return metric_writer.read_metrics(folder)


def median(log):
  """Seconds of a step."""
  found = [line["step_seconds_p50"] for line in log if "loss" in line]
  return found[-1]


def evaluated(name, count):
  """The report on samples of a run."""
  folder = os.path.join(RUNS, name)
  return call(
    *("-m", "ldm_jax", "report", f"--model={folder}"),
    *(f"--out={folder}/report", f"--num={count}", f"--steps={STEPS}"),
    f"--guidance={GUIDANCE}",
  )


def cached(claim, name, measure):
  """A measurement by name; it is computed once and stored in runs/claims."""
  path = os.path.join(RUNS, f"{claim}.json")
  found = {}
  if os.path.exists(path):
    with open(path) as file:
      found = json.load(file)
  if name not in found:
    found[name] = measure()
    os.makedirs(RUNS, exist_ok=True)
    with open(path + ".part", "w") as file:
      json.dump(found, file, indent=1)
    os.replace(path + ".part", path)
  print(json.dumps({"claim": claim, "what": name, **found[name]}), flush=True)
  return found[name]


@functools.cache
def first_stage(factor):
  """The run of an autoencoder of this f on the glyphs of 64 pixels."""
  name = f"one_f{factor}"
  train(
    "claims_autoencoder",
    name,
    task__autoencoder__trunk__multipliers=FACTORS[factor],
    task__bottleneck_weight=5e-3,
  )
  return os.path.join(RUNS, name)


def step_cost(factor):
  """Claim one: the cost of a step and of a sample at one f."""
  config, name, fields = second_stage(factor)
  step = median(train(config, name, steps=20, **fields))
  return {
    "step_seconds": round(step, 4),
    "samples_per_second": sampling_speed(name),
  }


def second_stage(factor):
  """Config, name and fields of the run of one f."""
  levels, depths = LEVELS[factor]
  fields = {"task__model__unet__multipliers": levels}
  fields |= {"task__model__unet__attention__depths": depths}
  if factor == 1:
    return "claims_pixels", "two_f1", fields
  fields |= {"first_stage": first_stage(factor)}
  return "claims_latents", f"two_f{factor}", fields


def quality(factor, step, seconds):
  """Claim one: the report after a number of seconds of training."""
  config, name, fields = second_stage(factor)
  steps = max(20, round(seconds / step))
  log = train(config, name, steps=steps, **fields)
  # Fewer in pixel space, where samples are expensive.
  found = evaluated(name, FEW if factor == 1 else MANY)
  result = {"steps": steps, "seconds": round(steps * median(log))}
  result |= {"first_stage_seconds": round(found.get("seconds_stage_one", 0))}
  return result | {n: v for n, v in found.items() if "seconds" not in n}


def time_to_reach(curve, level):
  """Seconds until an accuracy, interpolated linearly; None if never."""
  before = (0.0, CHANCE)
  for point in curve:
    here = (point["seconds"], point[FIRST])
    if here[1] >= level:
      fraction = (level - before[1]) / max(1e-9, here[1] - before[1])
      return before[0] + fraction * (here[0] - before[0])
    before = here
  return None


def sampling_speed(name):
  """Samples per second, of 15 guided steps, without compilation."""
  import time

  from ldm_jax.data import batching
  from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
  from ldm_jax.diffusion.samplers import SamplerConfig
  from ldm_jax.evaluation.condition_sampler import ConditionSampler
  from ldm_jax.pretrained.open_model import open_denoiser_run
  from ldm_jax.runtime.devices.sharding import MeshShape
  from ldm_jax.sampling import SamplingConfig

  run = open_denoiser_run(os.path.join(RUNS, name))
  settings = SamplingConfig(
    64, 64, SamplerConfig(STEPS), ClassifierFreeGuidance(GUIDANCE)
  )
  sampler = ConditionSampler(run, settings, MeshShape().build())
  examples = batching.first(run.experiment.data.validation, 16)
  sampler.generate(examples)
  begun = time.monotonic()
  sampler.generate(examples)
  return round(16 / (time.monotonic() - begun), 3)


def one():
  """Quality of the same U-Net after equal training time, by f."""
  costs, curves = {}, {}
  for f in FACTORS:
    result = cached("one", f"f{f}", functools.partial(step_cost, f))
    costs[f], step = result, result["step_seconds"]
    curves[f] = [
      cached("one", f"f{f} {t} s", functools.partial(quality, f, step, t))
      for t in TIMES
    ]
  for slow, fast in itertools.combinations(FACTORS, 2):
    last = curves[slow][-1]
    level = last[FIRST]
    result = {
      "claim": "one",
      "what": f"f{fast} against f{slow}",
      "level": level,
    }
    if level > 2 * CHANCE:
      found = time_to_reach(curves[fast], level)
      result["times"] = found and round(last["seconds"] / found, 1)
      spent = curves[fast][-1]["first_stage_seconds"]
      spent -= last["first_stage_seconds"]
      result["times_with_first_stage"] = found and round(
        last["seconds"] / max(1, found + spent), 1
      )
    print(json.dumps(result))
  plot = canvas(3, "seconds of training the second stage")
  plot[2].set_xlabel("f")
  for f, curve in curves.items():
    x = [each["seconds"] for each in curve]
    spent = curve[0]["first_stage_seconds"]
    y = [each[FIRST] for each in curve]
    label = "pixels" if f == 1 else f"f = {f}"
    plot[0].plot([0, *x], [CHANCE, *y], "o-", label=label)
    x = [spent + each for each in (0, *x)]
    plot[1].plot(x, [CHANCE, *y], "o-", label=label)
  plot[1].set_xlabel("with the first stage's")
  names = list(map(str, FACTORS))
  for name, label in (
    ("step_seconds", "seconds of a step"),
    ("samples_per_second", "samples a second"),
  ):
    values = [result[name] for result in costs.values()]
    plot[2].semilogy(names, values, "s--", label=label)
  for axes in plot[:2]:
    axes.set_ylabel(FIRST.replace("_", " "))
    axes.legend()
  finish(plot, "one.png")


def bottleneck(factor, channels, config):
  """Claim two: what one bottleneck preserves."""
  name = f"{config}_f{factor}_c{channels}"
  fields = dict(LEARNED)
  if config == "vq":
    fields |= {"task__autoencoder__bottleneck__width": channels}
  log = train(
    f"claims_{config}",
    name,
    task__autoencoder__trunk__multipliers=FACTORS[factor],
    task__autoencoder__latent_channels=channels,
    data__source__level=1,
    data__source__detail=1,
    data__validation__level=1,
    data__validation__detail=1,
    **fields,
  )
  folder = os.path.join(RUNS, name)
  found = call(
    *("-m", "ldm_jax", "evaluate", folder, "--num=256"),
    *(f"--out={folder}/evaluation", *lpips()),
  )
  result = {n: found[n] for n in ("psnr", "ssim", "lpips")}
  positions = (64 // factor) ** 2
  if config == "vq":
    result |= {"bits": 9 * positions, "codes_used": codes_used(folder)}
  else:
    result |= {"numbers": positions * channels}
  return result | finest(folder) | {"step_seconds": median(log)}


def codes_used(folder):
  """How many of the 512 codes 256 held-out images use."""
  import jax
  import numpy as np

  from ldm_jax.pixels import to_float

  model, params, images = opened(folder)

  def codes(params, x):
    quantise = lambda model, x: model.bottleneck.nearest(model.encode(x).mode())
    return model.apply(params, to_float(x), method=quantise)

  found = np.asarray(jax.jit(codes)(params, images))
  return len(np.unique(found.reshape(-1, found.shape[-1]), axis=0))


def opened(folder):
  """An autoencoder, its variables, and 256 held-out images."""
  from ldm_jax.data import batching
  from ldm_jax.run import Run
  from ldm_jax.runtime.devices.sharding import MeshShape

  run = Run.open(folder)
  params = run.trained(MeshShape().build())
  images = batching.first(run.experiment.data.validation, 256)["image"]
  return run.experiment.task.autoencoder, params, images


def lpips():
  """LPIPS's files, where environment variables name them."""
  files = {n: os.environ.get(f"LPIPS_{n.upper()}") for n in ("trunk", "heads")}
  return [f"--lpips_{name}={path}" for name, path in files.items() if path]


def reconstructed(folder, count):
  """Level 1's first held-out examples, their scenes and reconstructions."""
  import numpy as np

  from ldm_jax.data.glyphs.source import Glyphs
  from ldm_jax.evaluation.reconstruct import reconstruction_function
  from ldm_jax.run import Run
  from ldm_jax.runtime.devices.sharding import MeshShape

  source = Glyphs(1, "validation", count)
  images = np.stack([each["image"] for each in source])
  scenes = [source.scene(i) for i in range(count)]
  reconstruct = reconstruction_function(Run.open(folder), MeshShape().build())
  return images, scenes, reconstruct(images)


def finest(folder):
  """Numbers read, gratings' contrast, textures kept, of 256 images."""
  from ldm_jax.evaluation.glyphs import fine_detail

  _, scenes, decoded = reconstructed(folder, 256)
  measures = (
    fine_detail.numbers_read,
    fine_detail.grating_contrast,
    fine_detail.texture_kept,
  )
  return {m.__name__: round(m(decoded, scenes), 4) for m in measures}


def two():
  """What each bottleneck loses, and a sheet of reconstructions."""
  import numpy as np

  from ldm_jax.runtime import image_files

  found, shown, labels = {}, [], []
  for factor, channels, config in BOTTLENECKS:
    name = f"{config}_f{factor}_c{channels}"
    measure = functools.partial(bottleneck, factor, channels, config)
    found[name] = cached("two", name, measure)
    images, _, decoded = reconstructed(os.path.join(RUNS, name), 4)
    kind = "KL" if config == "autoencoder" else "VQ"
    shown.append(np.concatenate(list(decoded), axis=1))
    labels.append(f"{kind}, f = {factor}, {channels} channels")
  shown.insert(0, np.concatenate(list(images), axis=1))
  large = np.stack(shown).repeat(2, 1).repeat(2, 2)
  sheet = image_files.image_grid(large, ["original", *labels], columns=2)
  image_files.write_png(os.path.join(FIGURES, "two_images.png"), sheet)
  names = ("psnr", "numbers_read", "grating_contrast", "texture_kept")
  plot = canvas(4, "f")
  for kind in ("autoencoder_f{}_c4", "autoencoder_f{}_c16", "vq_f{}_c4"):
    rows = [found[kind.format(f)] for f in (2, 4, 8)]
    for axes, name in zip(plot, names, strict=True):
      label = kind.replace("autoencoder", "KL").replace("_f{}_c", ", channels ")
      label = label.replace("vq", "VQ")
      axes.plot(["2", "4", "8"], [r[name] for r in rows], "o-", label=label)
      axes.set_ylabel(name.replace("_", " "))
  finish(plot, "two.png")


def train_stages(kl_weight, scale):
  """Claim three at one KL weight: both stages."""
  name = f"kl_weight_{kl_weight:g}"
  result = {}
  train(
    "glyphs_autoencoder",
    name,
    steps=ONE,
    task__optimizer__decay_steps=ONE,
    task__optimizer__muon=1e-2,
    task__bottleneck_weight=kl_weight,
    checkpoints__every=ONE,
  )
  result |= statistics(os.path.join(RUNS, name))
  second = name + ("" if scale is None else f"_scale_{scale:g}")
  train(
    "glyphs_class",
    f"{second}_two",
    first_stage=os.path.join(RUNS, name),
    steps=TWO,
    task__optimizer__decay_steps=TWO,
    checkpoints__every=TWO,
    task__latent_scale="none" if scale is None else scale,
  )
  found = evaluated(f"{second}_two", MANY)
  names = ("psnr", "valid_fraction", "class_accuracy", "diversity")
  return result | {n: found[n] for n in names}


def statistics(folder):
  """Statistics of the posterior of 256 held-out examples."""
  import jax
  import numpy as np

  from ldm_jax.pixels import to_float

  model, params, images = opened(folder)
  encode = jax.jit(lambda p, x: model.apply(p, to_float(x), method="encode"))
  posterior = encode(params, images)
  mean, width = (
    np.asarray(posterior.mean),
    np.exp(np.asarray(posterior.logvar) / 2),
  )
  each = mean.reshape(-1, mean.shape[-1])
  centred = (each - each.mean(0)) / each.std(0)
  return {
    "nats": float(posterior.kl().mean()),
    "std": float(mean.std()),
    "std_least": float(each.std(0).min()),
    "std_most": float(each.std(0).max()),
    "posterior_std": float(width.mean()),
    "kurtosis": float((centred**4).mean() - 3),
  }


def three():
  """Reconstruction and samples by the KL weight."""
  found = {}
  for kl_weight, scale in KL_WEIGHTS:
    name = f"{kl_weight:g}" + ("" if scale is None else f", scale {scale:g}")
    measure = functools.partial(train_stages, kl_weight, scale)
    found[name] = cached("three", name, measure)
  names = [n for n in found if "scale" not in n]
  unscaled = next(n for n in found if "scale" in n)
  plot = canvas(4, "weight of the KL term")
  for axes, shown in zip(plot, SHOWN, strict=True):
    for what in shown:
      values = [found[n][what] for n in names]
      line = axes.plot(names, values, "o-", label=what.replace("_", " "))[0]
      if what in QUALITY:  # the same first stage, latents not scaled
        x, value = unscaled.partition(",")[0], found[unscaled][what]
        axes.plot([x], [value], "x", color=line.get_color())
    axes.legend()
  plot[1].set_yscale("log")
  plot[2].set_yscale("log")
  plot[3].set_ylim(0, 1)
  finish(plot, "three.png")


def stage(kind, factor, channels):
  """Claim four: the run of a first stage on the glyphs of 64 pixels."""
  name = f"four_{kind}_f{factor}_c{channels}"
  fields = {
    "task__optimizer__muon": 1e-2,
    "task__optimizer__decay_steps": FOUR,
    "task__autoencoder__latent_channels": channels,
    "steps": FOUR,
    "checkpoints__every": FOUR,
  }
  config = {"kl": "claims_autoencoder", "vq": "claims_vq", "dc": "dcae_f32"}
  if kind != "dc":
    fields |= {"task__autoencoder__trunk__multipliers": WIDER[factor]}
  if kind == "kl":
    fields |= {"task__bottleneck_weight": 5e-3}
  if kind == "vq":
    fields |= {"task__autoencoder__bottleneck__width": channels}
  return os.path.join(RUNS, name), train(config[kind], name, **fields)


def looks(folder, *flags):
  """PSNR and SSIM of reconstructions."""
  out = f"--out={folder}/evaluation"
  found = call("-m", "ldm_jax", "evaluate", folder, out, *flags)
  return {name: round(found[name], 4) for name in LOOKS}


def first(kind, factor, channels):
  """Claim four: what a first stage preserves, and its cost."""
  folder, log = stage(kind, factor, channels)
  numbers = (64 // factor) ** 2 * (channels if kind != "vq" else 1)
  return {
    "numbers": numbers,
    "step_seconds": median(log),
    **looks(folder, "--num=256"),
  }


def second(kind, factor, channels):
  """Claim four: a step's cost, and samples after equal time of training."""
  folder, _ = stage(kind, factor, channels)
  levels, depths = DEEPER[factor]
  name = f"four_two_{kind}_f{factor}_c{channels}"
  fields = {
    "task__model__unet__multipliers": levels,
    "task__model__unet__attention__depths": depths,
    "task__model__unet__out_channels": channels,
    "first_stage": folder,
  }
  step = median(train("claims_latents", name, steps=20, **fields))
  steps = max(21, round(SECONDS / step))
  log = train("claims_latents", name, steps=steps, **fields)
  found = evaluated(name, MANY)
  kept = ("colour_accuracy", "class_accuracy", "valid_fraction")
  result = {"step_seconds": step, "steps": steps}
  result |= {"seconds": round(steps * median(log))}
  return result | {name: found[name] for name in kept}


def photographs(kind, factor, channels):
  """Claim four: the same first stages on photographs, without LPIPS."""
  name = f"four_photos_{kind}_f{factor}_c{channels}"
  fields = {
    "task__autoencoder__trunk__multipliers": WIDER[factor],
    "task__autoencoder__trunk__channels": 16,
    "task__autoencoder__trunk__groups": 4,
    "task__autoencoder__latent_channels": channels,
    "task__perceptual": "none",
    "task__discriminator": "none",
    "task__optimizer__muon": 5e-3,
    "task__optimizer__decay_steps": PHOTO_STEPS,
    "data__augment__size": 64,
    "steps": PHOTO_STEPS,
    "checkpoints__every": PHOTO_STEPS,
    "reports__previews_every": 0,
  }
  log = train("photos_autoencoder", name, **fields)
  folder = os.path.join(RUNS, name)
  return {"step_seconds": median(log), **looks(folder, "--num=3")}


def four():
  """All kinds of first stages: what they lose, and what they buy."""
  measures = {"": first, " second": second, " photographs": photographs}
  asked = {"": STAGES, " second": SECOND, " photographs": PHOTOGRAPHS}
  found = {}
  for what, measure in measures.items():
    for kind, factor, channels in asked[what]:
      name = f"{kind} f{factor} c{channels}{what}"
      bound = functools.partial(measure, kind, factor, channels)
      found[name] = cached("four", name, bound)
  plot = canvas(3, "latent numbers of an image of 64 x 64")
  for kind, label in (("kl", "KL"), ("vq", "VQ"), ("dc", "DC-AE")):
    rows = [(found[f"{k} f{f} c{c}"], f) for k, f, c in STAGES if k == kind]
    x = [row["numbers"] for row, _ in rows]
    for axes, shown in zip(plot, LOOKS, strict=False):
      axes.semilogx(x, [row[shown] for row, _ in rows], "o", label=label)
      axes.set_ylabel(shown)
      for row, factor in rows:
        axes.annotate(f"f{factor}", (row["numbers"], row[shown]))
  for kind, factor, channels in SECOND:
    row = found[f"{kind} f{factor} c{channels} second"]
    label = f"{kind} f{factor} c{channels}"
    plot[2].plot([row["step_seconds"]], [row[FIRST]], "o", label=label)
  plot[2].set_xlabel("seconds of a step of the second stage")
  plot[2].set_ylabel(f"colour correct after {SECONDS} s")
  plot[0].legend()
  finish(plot, "four.png")


def canvas(count, label):
  """Axes side by side."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  _, plot = pyplot.subplots(1, count, figsize=(4.2 * count, 3.4))
  for axes in plot:
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
  return plot


def finish(plot, name):
  """Writes the figure."""
  plot[-1].legend()
  figure = plot[0].figure
  figure.tight_layout()
  os.makedirs(FIGURES, exist_ok=True)
  path = os.path.join(FIGURES, name)
  figure.savefig(path, dpi=100)
  print(path)


if __name__ == "__main__":
  flags = argparse.ArgumentParser(description=__doc__)
  claims = {"one": one, "two": two, "three": three, "four": four}
  flags.add_argument("claim", choices=claims)
  claims[flags.parse_args().claim]()
