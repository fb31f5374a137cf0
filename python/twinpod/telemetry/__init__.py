"""What people and dashboards read.

Logs, Prometheus text, TensorBoard files, the reward curve. Knows records, no room.
"""
