"""Django's own test suite as our conformance test: ``python -m tests.django_suite --help``."""
