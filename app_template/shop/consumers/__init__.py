"""Consumers. workerkit finds them in every module of the package `shop`."""
