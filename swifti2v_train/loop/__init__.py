"""The training loop that all trainings share: trainer, checkpoints, estimate of memory and time."""
