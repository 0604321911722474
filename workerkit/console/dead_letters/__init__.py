"""Read, replay and delete dead letters for the console."""
