"""RED and RED++: a network in, a `Result` out. Start with `pipeline`."""
