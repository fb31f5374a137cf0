"""The test's driver of dynamic resources: four fake devices on a node, each a variable and a file in a container.

`python -m tests.cluster.devices --name NAME --node NODE`. It keeps nothing: what a device does to a container stands in
one CDI spec for all, a claim's devices are read from its status, so to prepare twice, to unprepare what never was, and
to be killed at any moment are all the same to it. The kubelet finds it by its registration socket, which is made anew
at each start; it deletes a lost driver's ResourceSlice, so that is looked after all the time.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
from tests.cluster import node as nodes
from tests.cluster.api import Api, Object
from tests.cluster.layout import Layout, read_layout
from tests.cluster.services import DEVICE_DRIVER, SLICES

DEVICES = tuple(f"device-{number}" for number in range(4))
CDI_KIND = "twinpod.test/fake"
LOOK_AFTER_S = 2.0
SERVICE_VERSION = "v1.DRAPlugin"

_messages, _ = grpc.protos_and_services("tests/cluster/protos/dra.proto")  # type: ignore[attr-defined,unused-ignore]
_hello, _ = grpc.protos_and_services("tests/cluster/protos/registration.proto")  # type: ignore[attr-defined,unused-ignore]


def cdi_spec(layout: Layout, node: str) -> Object:
    """What each device adds to a container: `TWINPOD_FAKE_DEVICE_<n>` and the file `/dev/twinpod-fake-<n>`."""
    devices = []
    for number, name in enumerate(DEVICES):
        file = nodes.folder(layout, node) / "devices" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{node}/{name}\n")
        mount = {
            "hostPath": str(file),
            "containerPath": f"/dev/twinpod-fake-{number}",
            "options": ["ro", "bind", "nosuid", "nodev", "noexec"],
        }
        edits = {"env": [f"TWINPOD_FAKE_DEVICE_{number}={node}/{name}"], "mounts": [mount]}
        devices.append({"name": name, "containerEdits": edits})
    return {"cdiVersion": "0.6.0", "kind": CDI_KIND, "devices": devices}


def slice_of(node: str, owner: str) -> Object:
    """What the scheduler sees. `owner`: uid of the node, with which it goes."""
    reference = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner, "controller": True}
    devices = [{"name": name, "attributes": {"number": {"int": at}}} for at, name in enumerate(DEVICES)]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{node}-{DEVICE_DRIVER}", "ownerReferences": [reference]},
        "spec": {
            "driver": DEVICE_DRIVER,
            "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }


def allocated(claim: Object) -> list[Object]:
    """The devices of ours that the claim has: `request`, `pool`, `device`."""
    results = claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", [])
    return [result for result in results if result["driver"] == DEVICE_DRIVER]


class Driver:
    """Serves the kubelet. All methods may be called any number of times."""

    def __init__(self, api: Api, endpoint: str) -> None:
        self._api, self._endpoint = api, endpoint

    def prepare(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Name the CDI devices of each claim."""
        return _messages.NodePrepareResourcesResponse(claims={one.uid: self._prepared(one) for one in request.claims})

    def unprepare(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """Nothing was kept, so nothing is to be taken back."""
        done = {claim.uid: _messages.NodeUnprepareResourceResponse() for claim in request.claims}
        return _messages.NodeUnprepareResourcesResponse(claims=done)

    def info(self, _request: Any, _context: grpc.ServicerContext) -> Any:
        """What the kubelet asks first."""
        return _hello.PluginInfo(
            type="DRAPlugin", name=DEVICE_DRIVER, endpoint=self._endpoint, supported_versions=[SERVICE_VERSION]
        )

    def registered(self, request: Any, _context: grpc.ServicerContext) -> Any:
        """What the kubelet makes of the answer."""
        print(f"registered: {request.plugin_registered} {request.error}", file=sys.stderr, flush=True)
        return _hello.RegistrationStatusResponse()

    def _prepared(self, asked: Any) -> Any:
        try:
            path = f"/apis/resource.k8s.io/v1/namespaces/{asked.namespace}/resourceclaims/{asked.name}"
            claim = self._api.get(path)
        except httpx.HTTPError as error:
            return _messages.NodePrepareResourceResponse(error=f"reading the claim: {error}")
        if claim is None or claim["metadata"]["uid"] != asked.uid:
            return _messages.NodePrepareResourceResponse(error=f"claim {asked.namespace}/{asked.name} is gone")
        devices = [
            _messages.Device(
                request_names=[result["request"]],
                pool_name=result["pool"],
                device_name=result["device"],
                cdi_device_ids=[f"{CDI_KIND}={result['device']}"],
            )
            for result in allocated(claim)
        ]
        return _messages.NodePrepareResourceResponse(devices=devices)


def look_after_slice(api: Api, node: str) -> None:
    """Publish the node's devices whenever they are not published; never returns."""
    while True:
        try:
            owner = api.get(f"/api/v1/nodes/{node}")
            if owner is not None and api.get(f"{SLICES}/{node}-{DEVICE_DRIVER}") is None:
                api.create(SLICES, slice_of(node, owner["metadata"]["uid"]))
        except httpx.HTTPError as error:
            print(f"publishing devices: {error}; trying again", file=sys.stderr, flush=True)
        time.sleep(LOOK_AFTER_S)


def main() -> None:
    """Never returns."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--name", required=True)
    arguments.add_argument("--node", required=True)
    given = arguments.parse_args()
    layout = read_layout(given.name)
    assert layout is not None
    (nodes.device_specs(layout, given.node) / "fake.json").write_text(
        json.dumps(cdi_spec(layout, given.node), indent=1)
    )
    root, api = nodes.kubelet_root(layout, given.node), Api(layout, "devices")
    serving, hello = root / "plugins" / "fake.sock", root / "plugins_registry" / "fake.sock"
    driver = Driver(api, str(serving))
    server = grpc.server(ThreadPoolExecutor(8))
    _serve(
        server,
        _messages,
        "DRAPlugin",
        {"NodePrepareResources": driver.prepare, "NodeUnprepareResources": driver.unprepare},
    )
    _serve(server, _hello, "Registration", {"GetInfo": driver.info, "NotifyRegistrationStatus": driver.registered})
    for path in (serving, hello):
        path.unlink(missing_ok=True)
        server.add_insecure_port(f"unix://{path}")
    server.start()
    look_after_slice(api, given.node)


def _serve(server: grpc.Server, messages: Any, name: str, methods: dict[str, Any]) -> None:
    service = messages.DESCRIPTOR.services_by_name[name]
    handlers = {}
    for method in service.methods:
        request, reply = (getattr(messages, kind.name) for kind in (method.input_type, method.output_type))
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            methods[method.name], request_deserializer=request.FromString, response_serializer=reply.SerializeToString
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


if __name__ == "__main__":
    main()
