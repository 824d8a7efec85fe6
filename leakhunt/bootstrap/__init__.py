"""What ``leakhunt run`` puts in front of ``PYTHONPATH``: this directory, and nothing else in it."""
