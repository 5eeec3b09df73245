"""Pictures of Temporal's web page."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from servers.browser import browser
from servers.build import ServerError
from servers.temporal import NAMESPACE, TemporalServer
from temporalio.client import Client

pytestmark = pytest.mark.servers

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def test_a_missing_browser_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Chromium, the error says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerError, match="apt-get install -y chromium"), browser():
        pass


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium on PATH")
@pytest.mark.anyio
async def test_the_page_of_an_unfinished_activity_can_be_taken(tmp_path: Path) -> None:
    """It becomes a picture of the size asked for, although that page never stops to ask the server."""
    with TemporalServer(tmp_path) as server, browser() as page:
        client = await Client.connect(server.address)
        limit = timedelta(minutes=5)
        activity = await client.start_activity("x", id="one", task_queue="none", schedule_to_close_timeout=limit)
        url = f"{server.ui}/namespaces/{NAMESPACE}/activities/{activity.id}/{activity.run_id}/details"
        page.screenshot(url, tmp_path / "one.png", shows="Retry Policy", width=800, height=600)
    picture = (tmp_path / "one.png").read_bytes()
    assert picture.startswith(_SIGNATURE)
    assert [int.from_bytes(picture[at : at + 4]) for at in (16, 20)] == [800, 600]
