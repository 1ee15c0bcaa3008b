"""Pictures and videos. See docs/architecture.md."""
