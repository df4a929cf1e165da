"""Networks as Flax Linen modules; no noise, no optimizer, no mesh."""
