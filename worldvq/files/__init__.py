"""Everything that touches a disk safely. See docs/architecture.md."""
