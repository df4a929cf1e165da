"""diffusers' schedulers of flows, in and out."""
