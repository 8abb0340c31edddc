"""Whether W&B's server can be used, asked in bounded time: wandb itself asks for minutes where nobody answers."""

from __future__ import annotations

import base64
import os
import threading
import urllib.error
import urllib.request

CONNECT_S = 5.0  # for each step of asking the server: connecting, reading
PROBE_S = 8.0  # for all of it, name lookup included

_answers: dict[tuple[str, str], str | None] = {}  # per server and key: one question a process
_asking = threading.Lock()


def refusal() -> str | None:
    """Why runs cannot be online, or None: asked once a process and server, answered within `PROBE_S`."""
    if os.environ.get("WANDB_MODE") == "offline":
        return "WANDB_MODE=offline (cluster.offline=true sets it on nodes without a network)"
    import wandb

    settings = wandb.setup().settings
    url = str(settings.base_url)
    key = settings.api_key or stored_key(url)
    if not key:
        return f"no key for {url}: run `wandb login` or set WANDB_API_KEY"
    with _asking:
        if (url, key) not in _answers:
            _answers[url, key] = asked(url, key)
        return _answers[url, key]


def stored_key(url: str) -> str | None:
    """The key that ``wandb login`` has put into the netrc file."""
    from requests.utils import get_netrc_auth

    found = get_netrc_auth(url)
    return found[1] if found else None


def asked(url: str, key: str) -> str | None:
    """What is wrong with the server, or None; in a thread of its own, because a name lookup knows no time-out."""
    answer: list[str | None] = []
    thread = threading.Thread(target=lambda: answer.append(_ask(url, key)), name="wandb-probe", daemon=True)
    thread.start()
    thread.join(PROBE_S)
    return answer[0] if answer else f"{url} did not answer within {PROBE_S:.0f} s"


def _ask(url: str, key: str) -> str | None:
    credentials = base64.b64encode(f"api:{key}".encode()).decode()
    request = urllib.request.Request(
        f"{url.rstrip('/')}/graphql",
        data=b'{"query": "query { viewer { id } }"}',
        headers={"Content-Type": "application/json", "Authorization": f"Basic {credentials}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_S):
            return None
    except urllib.error.HTTPError as e:
        if e.code in (401, 403):
            return f"{url} refuses the key ({e.code}): run `wandb login` or set WANDB_API_KEY"
        return None if e.code < 500 else f"{url} answers {e.code} {e.reason}"
    except (OSError, ValueError) as e:  # also URLError: refused, no such host, no route, a bad certificate, no address
        why = getattr(e, "reason", e)
        late = isinstance(why, TimeoutError)
        return f"{url} did not answer within {CONNECT_S:.0f} s" if late else f"{url} cannot be reached ({why})"
