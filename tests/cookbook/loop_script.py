"""A script that trains by a loop of its own."""

from __future__ import annotations

import tinker

if __name__ == "__main__":
    service = tinker.ServiceClient()
    service.create_lora_training_client("test/model", rank=8).result()
