"""What the shop knows."""

from django.db import models


class Order(models.Model):
    """What somebody bought. ``number`` is chosen by whoever orders, so that a request may be sent twice."""

    number = models.CharField(max_length=40, unique=True)
    item = models.CharField(max_length=80)
    cents = models.PositiveIntegerField()
    placed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.number


class Payment(models.Model):
    """What the gateway charged. No constraint keeps a second one away: the tasks do, and the tests count."""

    order = models.ForeignKey(Order, models.CASCADE, related_name="payments")
    charge = models.CharField("the gateway's number", max_length=40)
    cents = models.PositiveIntegerField()
    booked_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.charge


class Invoice(models.Model):
    """A file that was written for an order."""

    order = models.OneToOneField(Order, models.CASCADE, related_name="invoice")
    path = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.path


class Report(models.Model):
    """What was earned on a day."""

    day = models.DateField(unique=True)
    orders = models.PositiveIntegerField()
    cents = models.PositiveBigIntegerField()

    def __str__(self) -> str:
        return str(self.day)
