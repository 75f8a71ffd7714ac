"""Which requests another site has a browser send: they carry what the browser knows of this one, such as a key.

A browser says where a request comes from (`Sec-Fetch-Site`); an older one says at least whose page sends a form or a
script's request (`Origin`), or whose page has the link or the picture (`Referer`). Tools say none of these.
"""

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers

OWN = ("same-origin", "none")
"""Of Sec-Fetch-Site: a page of this server, or nobody's, as when a person opens an address. Not another one of the same
domain or machine, which need not be trusted."""
PORTS = {"http": "80", "https": "443"}
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Another site sent you here</title></head>
<body><h1>Another site sent you here</h1>
<p>Nothing has been looked up. If you meant to come, <a href="">open this address</a> yourself.</p></body></html>
"""


def is_foreign(given: Headers, scheme: str) -> bool:
    """Tell whether a browser sent a request on behalf of another site, or does not say of which."""
    sites = given.getlist("sec-fetch-site")
    if any(site not in OWN for site in sites):
        return True
    origins = given.getlist("origin")
    if not sites and not origins:
        origins = given.getlist("referer")
    # A page that tells nobody where it was left says null; that it is one of ours only Sec-Fetch-Site can say.
    own = [origin for origin in origins if origin != "null" or "same-origin" not in sites]
    return not all(_is_ours(origin, given.get("host", ""), scheme) for origin in own)


def is_navigation(given: Headers) -> bool:
    """Tell whether a person sees the answer in a window of its own."""
    return given.get("sec-fetch-mode") == "navigate" and given.get("sec-fetch-dest", "document") == "document"


def _is_ours(origin: str, host: str, scheme: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    default = PORTS.get(parts.scheme)
    if default is None or (scheme == "https" and parts.scheme != "https"):
        return False
    own = parts.netloc.rpartition("@")[2]
    return bool(own) and _without(own, default) == _without(host, default)


def _without(host: str, port: str) -> str:
    return re.sub(f":{port}$", "", host.strip().lower())
