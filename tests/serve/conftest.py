"""A service on the tiny model with a folder of identities, and clients in the same process."""

import pytest
from tests.hosts.conftest import make_identity

from sefi.core.config import DEFAULT, override

QUICK = override(DEFAULT, ["generate.steps=3"])
NAMES = [f"p{number}" for number in range(5)]


@pytest.fixture(scope="session")
def people(backbone):
    """Five identities far from each other; one has a single stage."""
    return {name: make_identity(backbone, name, 1 if n == 3 else 5, n) for n, name in enumerate(NAMES)}


@pytest.fixture
def folder(people, tmp_path):
    """Their files."""
    folder = tmp_path / "identities"
    for name, identity in people.items():
        identity.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def make_service(backbone, folder):
    """Return a function that makes a service; arguments are those of `RequestLimits` and of `ServeOptions`."""
    for module in ("fastapi", "prometheus_client"):
        pytest.importorskip(module, reason="needs the extra `serve`")
    from sefi.serve.app import ImageService, ServeOptions, open_identities
    from sefi.serve.limits import RequestLimits

    services = []

    def make(model=backbone, copies=1, options=None, **limits):
        chosen = ServeOptions(QUICK, RequestLimits(**limits), **(options or {}))
        service = ImageService([model] * copies, open_identities(folder, model), chosen)
        services.append(service)
        return service

    yield make
    for service in services:
        service.stop()
        for worker in service.workers:
            if worker.thread.is_alive():
                worker.thread.join(30)


@pytest.fixture
def make_client(make_service):
    """Return a function that makes a client of a service whose workers run."""
    from fastapi.testclient import TestClient

    from sefi.serve.app import create_app

    clients = []

    def make(service=None, **options):
        app = create_app(service or make_service(**options))
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)
