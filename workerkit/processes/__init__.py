"""Several processes of one application: a parent that starts, watches and replaces them."""
