"""What the docs site generates from the code: tables of the reference, and `llms.txt`."""
