"""The test project with the tests' own views beside its pages."""

import faulthandler
import signal

from project.settings import *  # noqa: F403

ROOT_URLCONF = "tests.process.server_urls"

faulthandler.register(signal.SIGRTMIN)  # servers use the others for themselves
