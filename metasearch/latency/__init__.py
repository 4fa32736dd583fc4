"""The latency of a network on a device: predicted from its operations' shapes, fitted to what `bench` measured."""
