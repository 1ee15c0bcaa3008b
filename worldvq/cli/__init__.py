"""The command line. See docs/architecture.md."""
