"""A service that books orders."""
