"""The built-in procedural data set of captioned shapes."""
