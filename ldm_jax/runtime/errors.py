"""What goes wrong with numbers and with files, apart from wrong input."""


class NonFinite(ArithmeticError):
  """A loss, a gradient or a parameter is no longer a number."""


class SaveFailed(OSError):
  """A checkpoint could not be written."""


class TooLarge(ValueError):
  """No device has the memory for it."""


class Damaged(RuntimeError):
  """What is on disk is not what was written."""
