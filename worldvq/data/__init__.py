"""Stores of episodes and tokens, shards and clips. See docs/architecture.md."""
