"""celery-durable in a Django project: ``INSTALLED_APPS += ["celery_durable.contrib.django"]``."""
