"""Flags: the parser, tables of flags, and groups that commands share."""
