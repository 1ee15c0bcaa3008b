"""Playing environments and keeping what happened. See docs/architecture.md."""
