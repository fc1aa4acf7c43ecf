"""The README's program prints what the README says, and it is an example too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_program() -> None:
    pytest.importorskip("unicorn")
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.S)
    assert found is not None
    program, output = found.groups()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == output.strip()
    example = (ROOT / "examples" / "remoteproc.py").read_text()
    assert re.sub(r" +#", " #", program).split() == example.partition('"""\n\n')[2].split()


def test_links() -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
