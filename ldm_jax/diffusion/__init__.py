"""The mathematics: schedules, predictions, losses, samplers."""
