"""Every module of this package is searched for consumers."""
