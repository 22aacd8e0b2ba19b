"""Settings for Django's own suite: those of its ``test_sqlite``, with the engine of the run."""

from __future__ import annotations

import django

from raftsuite.databases import databases

DATABASES = databases("default", "other")
SECRET_KEY = "django_tests_secret_key"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
USE_TZ = False
TEST_RUNNER = "raftsuite.runner.Runner"
if django.VERSION < (6, 0):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
