"""What workers and beats of the comparison load: `celery -A tests.pains.app worker`."""

import json
import os
from pathlib import Path

from tests.pains.tasks import build

CONF = json.loads(os.environ["CRASH_CONF"])
app = build(CONF, Path(os.environ["CRASH_FOLDER"]))
