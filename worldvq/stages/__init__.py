"""The road, stage by stage. See docs/architecture.md."""
