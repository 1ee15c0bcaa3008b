"""Part of worldvq; see docs/architecture.md."""
