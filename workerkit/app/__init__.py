"""The application: its classes are found, built with what they need, run and closed."""
