"""Writes the dashboards: python deploy/grafana/dashboards.py [--check]

Each is made in the file of its name from the parts in `panels`. `dashboards/*.json` is what Grafana reads, and is
committed; running this again changes nothing (tests see to it).
"""

import json
import sys
from pathlib import Path

from broker import broker
from delivery import delivery
from overview import overview

OUT = Path(__file__).resolve().parent / "dashboards"


def rendered() -> dict[str, str]:
    """File name and content of each dashboard."""
    made = {"overview": overview(), "delivery": delivery(), "broker": broker()}
    return {f"{name}.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in made.items()}


def main(arguments: list[str]) -> int:
    """Writes them, or with --check only says which are not as they should be (1)."""
    stale = [
        name
        for name, text in rendered().items()
        if not (OUT / name).exists() or (OUT / name).read_text(encoding="utf-8") != text
    ]
    for name in stale:
        if "--check" in arguments:
            print(f"{name} is not what dashboards.py makes: run `just dashboards`")
        else:
            OUT.mkdir(exist_ok=True)
            (OUT / name).write_text(rendered()[name], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
