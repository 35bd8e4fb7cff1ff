"""A server that answers the requests of `huggingface_hub` as the Hugging Face Hub does, without Xet, from memory."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TOKEN = "hf_right"
"""The only token that may write."""


class Hub(http.server.ThreadingHTTPServer):
    """Repositories as lists of commits, each the files by their names."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.tags: dict[str, int] = {}
        self.asked: list[str] = []
        self.cut = 0
        """bytes that downloads are short of what their head says"""

    def commit(self, name: str, revision: str) -> int | None:
        """The number of the commit of a revision: main, a tag, or a checksum."""
        number = len(self.repositories[name]) - 1 if revision == "main" else self.tags.get(revision)
        return next((i for i in range(len(self.repositories[name])) if sha(name, i) == revision), number)


def sha(name: str, number: int) -> str:
    """The checksum that names a commit."""
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def reply(self, value: object = None, status: int = 200, **headers: str) -> None:
        """Send JSON, or bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value or {}).encode()
        self.send_response(status)
        for key, text in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str = "") -> None:
        """An error, with the code in which the client reads the reason."""
        self.reply({"error": code}, status, X_Error_Code=code, X_Error_Message=f"refused: {code}")

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if path == "/":
            return self.reply()
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        asked = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = found or asked
        if not match or match[1] not in self.server.repositories:
            return self.refuse(404 if self.authorised else 401, "RepoNotFound")
        name, number = match[1], self.server.commit(match[1], match[2] or "main")
        if number is None:
            return self.refuse(404, "RevisionNotFound")
        files = self.server.repositories[name][number]
        if found:
            about = {
                "id": name,
                "sha": sha(name, number),
                "private": name in self.server.private,
                "tags": [],
                "downloads": 0,
            }
            return self.reply(about | {"siblings": [{"rfilename": file} for file in files]})
        if match[3] not in files:
            return self.refuse(404, "EntryNotFound")
        self.send_file(files[match[3]], sha(name, number))

    do_HEAD = do_GET

    def send_file(self, data: bytes, commit: str) -> None:
        """A file with the headers from which the client makes its cache; shortened by `Hub.cut`."""
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        sent = data[: len(data) - self.server.cut] if self.command == "GET" else data
        self.close_connection = len(sent) < len(data)
        self.reply(sent, ETag=etag, X_Repo_Commit=commit, Content_Length=str(len(data)), Content_Type="text/plain")

    @property
    def authorised(self) -> bool:
        """Whether the request has the token that may write."""
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.authorised:
            return self.refuse(401)
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path.endswith("/objects/batch"):
            return self.reply({"transfer": "basic", "objects": [self.action(x) for x in json.loads(body)["objects"]]})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if path == "/api/validate-yaml" or not match:
            return self.reply({"errors": [], "warnings": []})
        if match[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.reply({"files": files})
        self.add_commit(match[1], [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict) -> None:
        """Make a repository. Only USER may have some."""
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "USER":
            return self.refuse(403)
        if name in self.server.repositories:
            return self.reply({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        self.server.repositories[name] = [{".gitattributes": b""}]
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(name)
        self.reply({"url": f"{self.server.url}/{name}", "name": name})

    def action(self, wanted: dict) -> dict:
        """Where a large file is to be put."""
        upload = {"href": f"{self.server.url}/large/{wanted['oid']}", "header": {}}
        return wanted | {"authenticated": True, "actions": {"upload": upload}}

    def do_PUT(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[self.path.rpartition("/")[2]] = data
        self.reply()

    def add_commit(self, name: str, lines: list[dict]) -> None:
        """All files of a commit at once."""
        commits = self.server.repositories[name]
        files = dict(commits[-1])
        for value in (line["value"] for line in lines if line["key"] == "file"):
            files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            files[value["path"]] = self.server.large[value["oid"]]
        commits.append(files)
        url = f"{self.server.url}/{name}/commit/{sha(name, len(commits) - 1)}"
        self.reply({"success": True, "commitOid": sha(name, len(commits) - 1), "commitUrl": url, "hookOutput": ""})

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[Hub]:
    """A server while the context lasts."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
