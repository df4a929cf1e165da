"""A hub on loopback: the parts of its HTTP API that huggingface_hub calls."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class FakeHub(http.server.ThreadingHTTPServer):
  """Repositories in memory; `files` of owner/model, and all `requests`."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.files, self.requests, self.heads = {}, [], {}

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}"

  def head(self, name):
    """The hash of the newest commit."""
    return self.heads.get(name, "0" * 40)

  def commit(self, name, lines):
    """Applies the lines of a commit."""
    files = self.files[name]
    for line in lines:
      value = line["value"]
      if line["key"] == "file":
        files[value["path"]] = base64.b64decode(value["content"])
      if line["key"] == "deletedFile":
        del files[value["path"]]
    content = repr(sorted((n, hash(data)) for n, data in files.items()))
    self.heads[name] = hashlib.sha1(content.encode()).hexdigest()


@contextlib.contextmanager
def serving():
  """A `FakeHub` that answers until the block ends."""
  hub = FakeHub()
  thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    hub.shutdown()
    hub.server_close()
    thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def do_POST(self):
    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
    path, hub = self._path(), self.server
    if path == "/api/repos/create":
      made = json.loads(body)
      name = f"{made['organization']}/{made['name']}"
      hub.files.setdefault(name, {})
      return self._json({"url": f"{hub.url}/{name}", "name": name})
    if path == "/api/validate-yaml":
      return self._json({"warnings": [], "errors": []})
    name, action = self._repository(path)
    if action.startswith("preupload"):
      entries = [
        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
        for f in json.loads(body)["files"]
      ]
      return self._json({"files": entries})
    if action.startswith("commit"):
      hub.commit(name, [json.loads(line) for line in body.splitlines()])
      url = f"{hub.url}/{name}/commit/{hub.head(name)}"
      return self._json({"commitUrl": url, "commitOid": hub.head(name)})
    return self._json({"error": path}, 404)

  def do_GET(self):
    path, hub = self._path(), self.server
    if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
      return self._file(*map(urllib.parse.unquote, found.groups()))
    if not path.startswith("/api/models/"):
      return self._json({"error": path}, 404)
    name, action = self._repository(path)
    if name not in hub.files:
      return self._json({"error": "Repository not found"}, 404)
    entries = [
      {"type": "file", "path": n, "rfilename": n, "size": len(data)}
      | {"oid": hashlib.sha1(data).hexdigest()}
      for n, data in sorted(hub.files[name].items())
    ]
    if action.startswith("tree"):
      return self._json(entries)
    return self._json(
      {"id": name, "sha": hub.head(name), "siblings": entries, "tags": []}
      | {"private": False, "downloads": 0, "likes": 0}
    )

  do_HEAD = do_GET

  def _path(self):
    self.server.requests.append((self.command, self.path))
    return self.path.partition("?")[0]

  def _repository(self, path):
    """(owner/model, the rest) of /api/models/owner/model/rest."""
    owner, model, *rest = path.removeprefix("/api/models/").split("/")
    return f"{owner}/{model}", "/".join(rest)

  def _file(self, name, file):
    data = self.server.files.get(name, {}).get(file)
    if data is None:
      return self._json({"error": file}, 404, {"X-Error-Code": "EntryNotFound"})
    etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
    commit = {"X-Repo-Commit": self.server.head(name)}
    return self._answer(data, 200, etag | commit)

  def _json(self, value, status=200, headers=None):
    self._answer(json.dumps(value).encode(), status, headers or {})

  def _answer(self, data, status, headers):
    self.send_response(status)
    for name, value in (headers | {"Content-Length": str(len(data))}).items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)
