"""What ``DATABASES[alias]`` says, read and checked, one module for each thing that it speaks about."""
