"""From a step's event to its receiver: requests, signatures, retries, stores and the thread that sends."""
