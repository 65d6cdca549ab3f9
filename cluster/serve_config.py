"""The configuration with which `serve deploy` puts a bundle on a cluster.

`args` takes any key of the recipe's [serve] section beside the bundle.
"""

from __future__ import annotations

from pathlib import Path

from cluster.errors import ClusterError

TEMPLATE = """\
# serve deploy serve.yaml   (with the variables that `python -m cluster up` names)
proxy_location: HeadOnly
http_options:
  host: {host}
  port: {port}
  request_timeout_s: 15
logging_config:
  log_level: ERROR
  enable_access_log: false
applications:
  - name: rayrec
    route_prefix: /
    import_path: app.serving.service:build
    args:
      bundle: {bundle}
      host: {host}
      port: {port}
"""


def serve_config(bundle: Path | str, *, host: str = "127.0.0.1", port: int = 8000) -> str:
    """YAML for `serve deploy`; `bundle` is a folder, or a URI of which each node fetches a copy.

    Raises:
        ClusterError: `bundle` is not a bundle's folder.
    """
    location = str(bundle)
    if "://" not in location:
        if not (Path(location) / "manifest.json").is_file():
            raise ClusterError(f"{location} is not a bundle", "name the folder that `rayrec export` wrote")
        location = str(Path(location).absolute())
    return TEMPLATE.format(host=host, port=port, bundle=_quoted(location))


def _quoted(text: str) -> str:
    # A single-quoted YAML scalar knows one escape alone.
    return "'" + text.replace("'", "''") + "'"
