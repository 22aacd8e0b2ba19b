"""The shop in the admin."""

from django.contrib import admin

from .models import Order, OrderLine, Product

admin.site.site_header = "Harbour Street Stationers"
admin.site.site_title = "Harbour Street Stationers"
admin.site.index_title = "Shop"


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    """Prices and stock, edited in the list."""

    list_display = ["name", "sku", "category", "price", "stock", "updated"]
    list_editable = ["price", "stock"]
    list_filter = ["category"]
    search_fields = ["name", "sku"]


class OrderLineInline(admin.TabularInline):
    """The lines of an order."""

    model = OrderLine
    extra = 0
    autocomplete_fields = ["product"]


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders with their lines."""

    list_display = ["pk", "customer", "placed", "total"]
    date_hierarchy = "placed"
    search_fields = ["customer"]
    inlines = [OrderLineInline]
