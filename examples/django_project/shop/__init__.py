"""A small shop. Celery's app is imported here, so that every process of Django's knows it."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
