"""Environments: our own 3D maze, adapters that turn any environment into frames and actions."""
