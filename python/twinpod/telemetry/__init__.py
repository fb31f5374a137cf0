"""What people and dashboards read: logs, Prometheus text, TensorBoard files, the reward curve. Knows records, no room."""
