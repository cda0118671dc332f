"""A local chat-completions server with scripted answers."""

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """A running server. url: its base URL. requests: the excerpt and body of each request. paths, keys: the paths and
    Authorization headers of the requests. open, most: the current and the highest number of concurrent requests."""

    def __init__(self, url):
        self.url, self.requests, self.paths, self.keys, self.most, self.open = url, [], [], [], 0, 0
        self.lock = threading.Lock()


@contextmanager
def serving(answer):
    """Runs a server. answer: called with an excerpt and the number of its earlier requests; returns a reply as text, a body
    as bytes, a status, or (status, headers)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            excerpt = body["messages"][-1]["content"].split("----------")[1].strip()
            with server.lock:
                before = sum(excerpt == seen for seen, _ in server.requests)
                server.requests.append((excerpt, body))
                server.paths.append(self.path)
                server.keys.append(self.headers.get("authorization"))
                server.open += 1
                server.most = max(server.most, server.open)
            try:
                result = answer(excerpt, before)
            finally:
                with server.lock:
                    server.open -= 1
            self.reply(result)

        def reply(self, result):
            status, headers, content = 200, {}, b"no"
            if isinstance(result, str):
                content = json.dumps({"choices": [{"message": {"content": result}}]}).encode()
            elif isinstance(result, bytes):
                content = result
            else:
                status, headers = result if isinstance(result, tuple) else (result, {})
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            with suppress(OSError):  # the client has disconnected
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server = Server(f"http://127.0.0.1:{listener.server_port}/v1")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
