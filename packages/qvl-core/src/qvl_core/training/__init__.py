"""The one training loop and what it stands on: parts, batches, checkpoints, processes, optimizer, schedule, log."""
