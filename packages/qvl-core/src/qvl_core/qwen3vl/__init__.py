"""Qwen3-VL: loading, real model shapes, tune groups, batching and packing, losses, generation, tiny models."""
