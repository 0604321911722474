"""A shop that books the orders it hears of: a guided tour of workerkit."""
