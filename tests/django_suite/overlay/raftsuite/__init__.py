"""What a suite of tests that is not ours imports: settings, a runner that reports, an engine that is a real group.

This folder is put on the path of a process that runs another project's tests; it imports nothing of ``tests``.
"""
