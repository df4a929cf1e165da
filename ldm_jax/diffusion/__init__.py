"""The mathematics of diffusion: schedules, predictions, losses, samplers. Knows no network."""
