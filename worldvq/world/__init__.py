"""A world model, and the dreams in it. See docs/architecture.md."""
