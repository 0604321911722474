"""Periodic tasks: classes whose `handle` is called by the clock."""
