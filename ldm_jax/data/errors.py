"""What is wrong with a data set, apart from a setting that names it wrongly."""


class DataError(ValueError):
  """It is empty, does not agree with itself, or too much of it is bad."""
