"""Addresses of the shop."""

from django.urls import path

from orders import views

urlpatterns = [
    path("", views.shop, name="shop"),
    path("order", views.order, name="place"),
    path("orders/<str:number>", views.show, name="order"),
    path("api/orders", views.api, name="api"),
]
