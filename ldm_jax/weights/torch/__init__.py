"""torch's files, read without executing anything in them."""
