import pytest

from tests.flows.stores import Inputs, shared_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Inputs:
    base = tmp_path_factory.getbasetemp()
    return shared_inputs((base if worker_id == "master" else base.parent) / "flow-inputs")
