"""Groups of the conformance suite of transports; only ``s3torch.testing.transport_tests`` imports them."""
