"""Tokenizer, dynamics, sampling, losses. See docs/architecture.md."""
