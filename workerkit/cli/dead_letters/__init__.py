"""The commands `workerkit dead-letters ...`: list, show, replay and purge dead letters."""
