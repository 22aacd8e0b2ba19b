"""A WSGI application whose import uses the database: with --preload, gunicorn's master hosts the node."""

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()

from ledger.models import Event  # noqa: E402 - the applications are ready now

Event.objects.count()
