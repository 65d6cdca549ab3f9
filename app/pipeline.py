"""All stages on one page: (recipe, input directory) -> output directory.

    events, items, users --prepare--> dataset/ --train--> checkpoint/ --compress--> checkpoint/
        --export--> bundle/ --serve--> HTTP --feedback--> events

A stage whose inputs and settings have not changed is not run again; `force` overrides.
"""

from __future__ import annotations


