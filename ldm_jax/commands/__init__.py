"""The doors: parse, call, print."""
