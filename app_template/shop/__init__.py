"""A shop that books orders: an example application for workerkit."""
