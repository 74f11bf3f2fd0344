"""A model hub over HTTP that answers what it was told to."""

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@contextmanager
def serving(answers):
    """A hub that answers each path with (status, body, headers) in turn; the last answer stays. Yields it and what it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # the name is http.server's
            seen.append((self.path, self.headers.get("Authorization")))
            queue = answers[self.path.partition("?")[0]]
            status, body, headers = queue.pop(0) if len(queue) > 1 else queue[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
