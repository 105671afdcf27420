"""gs://bucket, as an emulator of Google's storage keeps it: fixtures for whoever imports them."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from etils.epath import gpath
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

from kosmos2_jax.interop.files import as_path

_MOVE = r"^/storage/v1/b/(?P<bucket_name>[^/]+)/o/(?P<object_id>[^/]+)/moveTo/o/(?P<to>[^/]+)$"


@pytest.fixture
def bucket(monkeypatch):
    """gs://bucket, kept by an emulator of Google's storage that gcsfs and TensorStore talk to."""
    routes = tuple(
        (path, {method: _with_generations(handler) for method, handler in handlers.items()})
        for path, handlers in ((_MOVE, {emulator.POST: _move}), *emulator.HANDLERS)
    )
    monkeypatch.setattr(emulator, "HANDLERS", routes)
    server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    server.start()
    address = f"http://localhost:{server._api._httpd.server_address[1]}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    # A test before this one may have used epath without what says that buckets go by gcsfs.
    gpath._is_tf_installed.cache_clear()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
    yield as_path("gs://bucket")
    server.stop()


@pytest.fixture
def close_bucket(bucket, monkeypatch):
    """Takes the right to write to gs://bucket away."""

    def denied(request, response, storage):
        response.status = HTTPStatus.FORBIDDEN
        response.json({"error": {"code": 403, "message": "no storage.objects.create access"}})

    def close():
        routes = tuple((path, {**of, emulator.POST: denied}) for path, of in emulator.HANDLERS)
        monkeypatch.setattr(emulator, "HANDLERS", routes)

    return close


def _with_generations(handler):
    """Adds to a handler of the emulator what TensorStore's conditional writes rest on.

    The emulator numbers the generations of an object, but neither sends the number with its content
    nor heeds conditions on it. Google's storage does:
    https://cloud.google.com/storage/docs/request-preconditions and
    https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooggeneration. One request is
    answered after the other, so that nothing comes between a condition and its write.
    """

    def handle(request, response, storage):
        name = request.params.get("object_id") or request.query.get("name", [None])[0]
        generation = _generation(storage, request.params.get("bucket_name"), name)
        if (status := _refusal(request, generation)) is not None:
            response.status = status
            return
        handler(request, response, storage)
        if request.method == emulator.GET and generation:
            response["x-goog-generation"] = str(generation)

    return handle


def _generation(storage, bucket, name):
    try:
        return int(storage.get_file_obj(bucket, name)["generation"])
    except NotFound:
        return 0  # what conditions say for an object that is not there


def _refusal(request, generation):
    for given in request.query.get("ifGenerationMatch", ()):
        if int(given) != generation:
            return HTTPStatus.PRECONDITION_FAILED
    for given in request.query.get("ifGenerationNotMatch", ()):
        if int(given) == generation:
            read = request.method == emulator.GET
            return HTTPStatus.NOT_MODIFIED if read else HTTPStatus.PRECONDITION_FAILED
    return None


def _move(request, response, storage):
    """What the emulator lacks: https://cloud.google.com/storage/docs/json_api/v1/objects/move."""
    names = request.params
    names.update(dest_bucket_name=names["bucket_name"], dest_object_id=names["to"])
    objects.copy(request, response, storage)
    objects.delete(request, response, storage)
