"""Captions of scenes: a template grammar with four paraphrases."""

from ldm_jax.data.glyphs.scenes import (
  BACKGROUNDS,
  COLOURS,
  LEVELS,
  PATTERNS,
  POSITIONS,
  SHAPES,
  SIZES,
  TEXTURES,
  Scene,
  Thing,
  centre,
  covers,
  place,
)

# One object: every paraphrase names all six attributes.
_ALONE = (
  "a {size} {colour} {texture} {shape} at the {position} on a {ground}"
  " background",
  "on a {ground} background there is a {size} {texture} {colour} {shape} at"
  " the {position}",
  "at the {position} of a {ground} background a {size} {shape} that is"
  " {colour} and {texture}",
  "a {ground} picture with a {size} {shape} in {texture} {colour} at the"
  " {position}",
)
# Several, or a number: {things} is "a ... left of a ...".
_TOGETHER = (
  "{things} on a {ground} background with the number {number} at the {corner}",
  "on a {ground} background there is {things} and at the {corner} the number"
  " {number}",
  "the number {number} at the {corner} of a {ground} background with {things}",
  "a {ground} picture with {things} and {number} written at the {corner}",
)
_OBJECT = (
  "a {size} {colour} {texture} {shape}",
  "a {size} {texture} {colour} {shape}",
  "a {size} {shape} that is {colour} and {texture}",
  "a {size} {shape} in {texture} {colour}",
)
PARAPHRASES = len(_ALONE)


def _named(thing: Thing) -> dict[str, str]:
  return {
    "shape": list(SHAPES)[thing.shape],
    "colour": list(COLOURS)[thing.colour],
    "texture": TEXTURES[thing.texture],
    "size": SIZES[thing.size],
    "position": POSITIONS[thing.position],
  }


def _ground(scene: Scene) -> str:
  """The background: its colour, with the pattern if the level has patterns."""
  pattern, colour = divmod(scene.background, len(BACKGROUNDS))
  name = list(BACKGROUNDS)[colour]
  if LEVELS[scene.level].patterns == 1:
    return name
  return f"{PATTERNS[pattern]} {name}"


def _touch(scene: Scene, first: Thing, second: Thing) -> bool:
  """Whether two things overlap, so that one hides part of the other."""
  marks = []
  for thing in (first, second):
    (rows, columns), mask = place(scene.level, thing)
    ys, xs = covers(mask).nonzero()
    pixels = (ys + rows.start) * LEVELS[scene.level].pixels + xs + columns.start
    marks.append(set(pixels.tolist()))
  return not marks[0].isdisjoint(marks[1])


def _relation(scene: Scene, k: int) -> str:
  """The spatial relation of thing k to thing k + 1.

  Left of or above, and in front or behind if they overlap; the order of things
  never needs "right of" or "below".
  """
  first, second = scene.things[k], scene.things[k + 1]
  (x, y), (x2, y2) = (centre(scene.level, t) for t in (first, second))
  relation = "left of" if x2 - x >= y2 - y else "above"
  # Bounding squares are cheaper to compare than pixels.
  reach = sum(LEVELS[scene.level].radii[t.size] for t in (first, second))
  if max(abs(x2 - x), abs(y2 - y)) >= reach or not _touch(scene, first, second):
    return relation
  in_front = scene.depth.index(k) > scene.depth.index(k + 1)
  return f"{relation} and {'in front of' if in_front else 'behind'}"


def caption(scene: Scene, paraphrase: int) -> str:
  """One of `PARAPHRASES` descriptions, in lower case without commas.

  A single thing is given with its position, several with their relations.
  """
  ground = _ground(scene)
  if scene.number is None:
    return _ALONE[paraphrase].format(ground=ground, **_named(scene.things[0]))
  phrases = [_OBJECT[paraphrase].format(**_named(t)) for t in scene.things]
  things = phrases[0]
  if len(phrases) == 1:
    things += f" at the {_named(scene.things[0])['position']}"
  for k, phrase in enumerate(phrases[1:]):
    things += f" {_relation(scene, k)} {phrase}"
  return _TOGETHER[paraphrase].format(
    things=things,
    ground=ground,
    number=scene.number,
    corner=POSITIONS[scene.corner],
  )


def caption_words(level: int) -> tuple[str, ...]:
  """Every word that a caption of this level may contain, sorted."""
  rules = LEVELS[level]
  frames = _ALONE if rules.objects == 1 else (*_TOGETHER, *_OBJECT, "at the")
  texts = [*list(SHAPES)[: rules.shapes], *TEXTURES[: rules.textures]]
  texts += [*COLOURS, *BACKGROUNDS, *SIZES, *POSITIONS]
  if rules.objects > 1:
    texts += ["left of and in front of", "above and behind", *PATTERNS]
    texts += map(str, range(10, 100))
  every = " ".join([*frames, *texts]).split()
  return tuple(sorted({word for word in every if "{" not in word}))
