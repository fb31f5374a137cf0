"""Generated gRPC stubs (`v1/`, committed; `make protos`), channels, servers and certificates."""
