"""Tokens entropy-coded with the probabilities that a world's own dynamics gives them, and the file they are kept in."""
