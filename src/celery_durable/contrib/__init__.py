"""What connects celery-durable with frameworks."""
