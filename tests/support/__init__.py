"""What tests share; ``tests`` is on the path, so it is imported under this one name."""
