"""A request's images, maps and arrays, read and resized."""
