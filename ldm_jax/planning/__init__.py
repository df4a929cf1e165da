"""Memory and cost of training or sampling, from a compiled program alone."""
