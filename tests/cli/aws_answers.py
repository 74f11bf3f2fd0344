"""Clients of services that the local AWS lacks: each call goes over HTTP and is answered by the test."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps, loads
from threading import Thread

import boto3
import botocore.session
from botocore.config import Config
from botocore.validate import ParamValidator


@contextmanager
def served(reply):
    """An endpoint that answers each POST with `reply(headers, body)`: content type and body. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # the name is http.server's
            kind, body = reply(self.headers, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def connected(service, endpoint):
    """A client of a service at an endpoint."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"max_attempts": 1}),
    )


def in_json(service, reply):
    """A reply for `served` in AWS's JSON protocol; what is asked is held against botocore's model."""
    model = botocore.session.get_session().get_service_model(service)

    def answer(headers, body):
        operation, arguments = headers["X-Amz-Target"].rsplit(".", 1)[-1], loads(body)
        shape = model.operation_model(operation).input_shape
        assert not ParamValidator().validate(arguments, shape).has_errors()
        return "application/x-amz-json-1.1", dumps(reply(operation, arguments)).encode()

    return answer


@contextmanager
def answering(service, reply):
    """A client of a service that is answered by `reply(operation, arguments)`."""
    with served(in_json(service, reply)) as endpoint:
        yield connected(service, endpoint)
