"""An edit explained: a model and two inputs come in, one page of HTML comes out that needs nothing else.

`cases` makes the edit as a user would, in a session of each kind, `outcomes` more edits like it. `passes` notes what
the session repaints; `forward` looks into these passes, `tile` into one tile; `observed` has the backends that tell
what they compute. `explanation` collects the `findings`, and `page` makes a page of them.
"""

from __future__ import annotations

from .explanation import Explanation, explain

__all__ = ["Explanation", "explain"]
