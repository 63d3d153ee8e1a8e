"""Settings that hold for every test."""

from hypothesis import settings

settings.register_profile("calotype", deadline=None, max_examples=50)  # a busy machine is no bug
settings.load_profile("calotype")
