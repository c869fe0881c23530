"""The tables of docs/config.md, as the fields of the configuration have them.

`PYTHONPATH=. python tests/key_reference.py` rewrites them after a change to lora_bench/config/schema.py.
"""

import re

from omegaconf import OmegaConf

from configs import ROOT, composed
from lora_bench.config.compose import COMMAND_KEYS
from lora_bench.config.schema import KEYS

PAGE = ROOT / "docs" / "config.md"
LONGEST_DEFAULT = 85


def rewritten(text: str) -> str:
    """The page with the rows of every section as the fields have them; what stands between its tables is kept."""
    defaults = composed()
    for section in dict.fromkeys(key.section for key in KEYS):
        rows = "".join(
            f"| `{key.path}` | `{shown(OmegaConf.select(defaults, key.path))}` | {key.fact.help} |\n"
            for key in KEYS
            if key.section == section
        )
        name = rf"{section}\.\w+" if section else rf"(?!(?:{'|'.join(COMMAND_KEYS)})`)\w+"
        text = re.sub(rf"(?:^\| `{name}` \|.*\n)+", rows.replace("\\", r"\\"), text, count=1, flags=re.MULTILINE)
    return text


def shown(value: object) -> str:
    """A default as one writes it in YAML, cut where it is long."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    text = "null" if plain is None else str(plain).lower() if isinstance(plain, bool) else str(plain)
    return text if len(text) <= LONGEST_DEFAULT else f"{text[:LONGEST_DEFAULT]}…"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
