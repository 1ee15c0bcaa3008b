"""What imagined frames are worth. See docs/architecture.md."""
