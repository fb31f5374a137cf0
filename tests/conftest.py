"""What holds for all tests."""

from hypothesis import settings

# The same examples each time, so that a change is judged by what it changed: `--hypothesis-profile=search`
# looks for new ones. An example's time is the machine's, not the code's.
settings.register_profile("twinpod", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=1_000)
settings.load_profile("twinpod")
