"""Metrics, tracing, admin API and dashboard. Empty for now; `/healthz` and `/readyz` are served."""
