"""What holds for all tests."""

from hypothesis import settings

settings.register_profile("twinpod", deadline=None)  # an example's time is the machine's, not the code's
settings.load_profile("twinpod")
