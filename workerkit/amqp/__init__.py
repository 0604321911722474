"""RabbitMQ. One message walks: tap, receiver, endpoint, signature, handler, and back to acks."""
