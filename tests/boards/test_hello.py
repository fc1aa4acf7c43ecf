# SPDX-License-Identifier: BSD-3-Clause
"""examples/hello.py as it is, over links and boards of all kinds; a guest runs it over uio: and mem:, see guest."""

from __future__ import annotations

import runpy
import subprocess
import sys
import threading

import pytest
from support import ROOT
from support_boards import needs

import rpmsgx
from rpmsgx.remoteproc import board

pytestmark = pytest.mark.timeout(60)
HELLO, BOARDS = ROOT / "examples" / "hello.py", ROOT / "examples" / "boards"


def test_over_a_link(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It opens its end itself, so the other is in this process."""
    with rpmsgx.open("virtual:hello", role="device") as remote:
        service = remote.create_endpoint("rpmsg-client-sample")

        def echo() -> None:
            for message in service:
                service.send(message)

        thread = threading.Thread(target=echo)
        thread.start()
        monkeypatch.setattr(sys, "argv", [str(HELLO), "virtual:hello"])
        try:
            runpy.run_path(str(HELLO), run_name="__main__")
        finally:
            service.close()
            thread.join()
    assert capsys.readouterr().out == "1000 messages there and back over virtual:hello\n"


@pytest.mark.parametrize("where", ["unicorn", "native", "qemu", "unicorn.toml", "qemu-mps2-an386.toml"])
def test_on_a_board(where: str) -> None:
    given = where
    if where.endswith(".toml"):
        given = str(BOARDS / where)
        found = board.load(given)
        needs(found.platform, found.options)
    else:
        needs(where, {})
    done = subprocess.run([sys.executable, "-W", "error", HELLO, given], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"1000 messages there and back over {given}\n"
