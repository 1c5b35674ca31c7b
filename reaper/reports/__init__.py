"""Findings for people and machines: text, tables, JSON, log lines and metrics."""
