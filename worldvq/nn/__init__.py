"""Parts that know no task. See docs/architecture.md."""
