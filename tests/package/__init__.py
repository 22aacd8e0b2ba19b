"""What ``python -m build`` made, used as a user does: ``python -m tests.package dist`` (``make package``)."""
