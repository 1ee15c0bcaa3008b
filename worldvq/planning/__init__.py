"""Planners that act by dreaming. They know no environment: plans go in, what each is worth comes out."""
