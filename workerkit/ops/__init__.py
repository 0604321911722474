"""What operators ask a process: is it alive, is it ready, what has it counted."""
