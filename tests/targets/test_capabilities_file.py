"""spec/capabilities.md says what the targets say."""

from attncc.syntax.resources import spec_path
from attncc.targets import TARGETS
from attncc.targets.describe import capabilities


def test_the_file_is_what_the_targets_say():
    assert spec_path("capabilities.md").read_text() == capabilities(), "run python -m attncc.targets.describe > spec/capabilities.md"


def test_every_target_is_in_it():
    assert all(f"`{name}`" in capabilities() for name in TARGETS)
