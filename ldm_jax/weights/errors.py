"""What is raised when a foreign weight file cannot be used."""


class WeightsError(ValueError):
  """One line: which file or tensor, what was found, what is needed."""


class NonFiniteWeights(WeightsError):
  """A tensor holds what is not a finite number."""
