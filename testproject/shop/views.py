"""The shop's pages."""

from django import forms
from django.contrib import messages
from django.db import OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from .models import Order, Product
from .nodes import describe_node
from .services import OutOfStock, place_order

ORDERS_SHOWN = 50


class BuyForm(forms.Form):
    """Some pieces of one product."""

    product = forms.IntegerField(min_value=1)
    quantity = forms.IntegerField(min_value=1, max_value=99)
    customer = forms.CharField(max_length=80, strip=True)


@require_GET
def product_list(request: HttpRequest) -> HttpResponse:
    """Everything there is to buy, or one category of it."""
    products = Product.objects.all()
    category = request.GET.get("category", "")
    if category:
        products = products.filter(category=category)
    categories = Product.objects.order_by("category").values_list("category", flat=True).distinct()
    context = {
        "products": products,
        "categories": categories,
        "category": category,
        "customer": request.COOKIES.get("customer", ""),
    }
    return render(request, "shop/products.html", context)


@require_POST
def buy(request: HttpRequest) -> HttpResponse:
    """Order one product; the answer is a message on the product list."""
    form = BuyForm(request.POST)
    response = redirect("shop:products")
    if not form.is_valid():
        messages.error(request, "Please give your name and a quantity from 1 to 99.")
        return response
    wanted = form.cleaned_data
    try:
        order = place_order(wanted["customer"], {wanted["product"]: wanted["quantity"]})
    except OutOfStock as error:
        messages.error(request, f"Sold out: {error}.")
    except Product.DoesNotExist:
        messages.error(request, "That product is not sold any more.")
    except OperationalError as error:
        messages.error(request, f"The order could not be taken: {error}")
    else:
        messages.success(request, f"Thank you, {order.customer}: order {order.pk}, {order.total:.2f} EUR.")
        response.set_cookie("customer", order.customer, samesite="Lax")
    return response


@require_GET
def order_list(request: HttpRequest) -> HttpResponse:
    """The newest orders."""
    orders = Order.objects.prefetch_related("lines__product")[:ORDERS_SHOWN]
    return render(request, "shop/orders.html", {"orders": orders})


@require_GET
def node(request: HttpRequest) -> HttpResponse:
    """The node that serves this page, and its group."""
    return render(request, "shop/node.html", {"node": describe_node()})


@require_GET
def node_json(_request: HttpRequest) -> JsonResponse:
    """The same for scripts; 503 where no leader is in reach."""
    described = describe_node()
    healthy = described["error"] is None and described["leader"] is not None
    return JsonResponse(described, status=200 if healthy or "leader" not in described else 503)
