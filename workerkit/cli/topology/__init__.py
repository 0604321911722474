"""The commands `workerkit topology ...`."""
