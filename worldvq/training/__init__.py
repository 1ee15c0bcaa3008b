"""One loop for every model. See docs/architecture.md."""
