"""Reply codes with which RabbitMQ says no: AMQP 0-9-1, section 1.2 of the reference."""

NO_PERMISSION = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
