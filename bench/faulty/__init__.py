"""What `bench.faults` is made of: the plan of each stream, the servers that misbehave, the client
that does, and the check of what a client saw."""
