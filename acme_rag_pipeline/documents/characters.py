"""Characters that are no text."""

from __future__ import annotations

import re

# But for \b \t \n \v \f \r, and the escape of coloured logs.
CONTROL = re.compile("[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")
# Half of a character, which an entity can spell.
SURROGATE = re.compile("[\ud800-\udfff]")
