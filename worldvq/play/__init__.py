"""A page to play in: the dream, and beside it the real environment, acted in by people."""
