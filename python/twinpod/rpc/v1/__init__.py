"""Generated from `protos/twinpod/rpc/v1/`; do not edit."""
