"""The networks: Flax modules that know no noise, no optimizer and no mesh."""
