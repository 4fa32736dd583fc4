"""The latency of a network on a device, predicted from the shapes of its operations; fitted to what `bench` measured."""
