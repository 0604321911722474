"""Health and metrics pages of a process, for operators."""
