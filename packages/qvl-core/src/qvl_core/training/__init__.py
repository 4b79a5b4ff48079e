"""The one training loop and what it stands on: parts, micro-batches, checkpoints, processes, optimizer, schedule, log."""
