"""Memory and cost of a program on a machine that is not here."""
