"""Delivery of step events to receivers: requests, signatures, retries, stores, and the worker thread that sends."""
